"""The lab: a site on this machine under load, broken on purpose, measured, tuned by what was measured, and asked again.

Rules: each step says what it found, what to look at meanwhile, and how long it took; nothing is told that was not
measured in the same run; a request that fails is a finding, not an end.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import yaml

from pipeline.catalog.document import Document
from pipeline.catalog.golden import GoldenPrompt, parse_golden
from pipeline.control.settings import GatewayEntry, Settings
from pipeline.errors import StageError
from pipeline.lab import journal, measured
from pipeline.lab.driver import Load, Seen, drive
from pipeline.lab.journal import Asked
from pipeline.lab.simulation.tune import Plan, Say, Tuned, tune
from pipeline.lab.site import ADMIN, CONTROLLER, GATEWAY, LARGE, Site
from pipeline.peers.policy import Policy
from pipeline.peers.role import Role
from pipeline.peers.status import STATUS_PATH, Pool
from pipeline.ports import files
from pipeline.serving import certs
from pipeline.serving.node.engine import HOST

Act = Callable[[], Awaitable[None]]
NODES = ("pi-1", "pi-2", "pi-3", "pi-4")
JOURNAL = "journal.jsonl"
_SHARED = {"policy.cpu"}  # is not for a lab to tune: its nodes share processors
_STEERED_S = 120.0  # until a new policy is in force
_SETTLED_S = 2.0  # between a load and what follows
TRIED = Plan(candidates=9, requests=1000, reported=5000, reports=3)


@dataclass(frozen=True)
class Took:
    """A step, and how many seconds it took."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Phase:
    """A load and what came of it, as its users and as the gateway saw it; `fault` is what was broken meanwhile."""

    name: str
    wanted: Load
    seen: Sequence[Seen]
    requests: Sequence[Asked]
    fault: str | None = None

    @property
    def failures(self) -> int:
        """How many requests had no complete answer."""
        return sum(s.failures for s in self.seen)

    @property
    def asked(self) -> int:
        """How many requests the users sent."""
        return sum(s.requests for s in self.seen)


@dataclass
class Findings:
    """What a lab comes to; `say` gets a line for the user now and then."""

    say: Callable[[str], None]
    steps: list[Took] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    tuned: Tuned | None = None

    @property
    def failures(self) -> int:
        """How many requests of all loads had no complete answer."""
        return sum(phase.failures for phase in self.phases)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Tell of a step, and take its time."""
        self.say(f"\n{len(self.steps) + 1}. {name}")
        began = time.monotonic()
        yield
        self.steps.append(Took(name, time.monotonic() - began))
        self.say(f"   took {self.steps[-1].seconds:.0f} s")


@dataclass(frozen=True)
class Plans:
    """How much is done: requests a second, seconds of each load, and how much the search tries."""

    rate: float = 12.0
    seconds: float = 60.0
    search: Plan = TRIED


def write_pki(folder: Path, names: Sequence[str]) -> None:
    """Write an authority's certificates for a site: servers, the gateway, and who steers."""
    now = datetime.now(UTC)
    authority = certs.new_authority(now)
    for name in (*names, GATEWAY, CONTROLLER):
        role = {LARGE: Role.LARGE, GATEWAY: Role.GATEWAY, CONTROLLER: Role.CONTROLLER}.get(name, Role.NODE)
        issued = certs.issue(authority, name, hosts=[HOST, "localhost"], roles=[role], now=now)
        certs.write_issued(folder / name, authority, issued)


class Laboratory:
    """One run; `searched` gets how far the search is."""

    def __init__(self, site: Site, plans: Plans, found: Findings, searched: Say) -> None:
        """Work with a site that was not opened yet, and add to what was found before."""
        self.found = found
        self._site, self._plans, self._say, self._searched = site, plans, found.say, searched

    async def run(self) -> None:
        """Do all steps that need the site; raises PipelineError where one cannot be done."""
        step, began = self.found.step, time.time()
        with step("start four nodes, a large server, a gateway and a controller"):
            await self._open()
        golden = parse_golden(self._site.golden.read_text(encoding="utf-8"), self._site.golden.name)
        with step("ask while all is well"):
            await self._load("all is well", golden)
        for name, fault, begin, end in self._faults():
            with step(f"ask while {fault}"):
                await self._load(name, golden, fault, begin, end)
        with step("tune the thresholds by what was measured"):
            await self._tune()
        with step("ask with the tuned policy"):
            await self._load("tuned", golden)
        told = "".join(f"{line}\n" for line in journal.lines(self._told(), began))
        files.write(self._site.logs / JOURNAL, told.encode())

    async def _open(self) -> None:
        site = self._site
        await site.open()
        await self._steer(site.policy)
        assert site.pki is not None, "a lab's site speaks mutual TLS"
        own = site.pki / CONTROLLER
        self._say(
            f"   look: curl --cacert {own}/ca.pem --cert {own}/cert.pem --key {own}/key.pem {site.operators}/status\n"
            f"   ask: {site.url}/v1, a chat completion with model auto; every process writes to {site.logs}\n"
            f"   decisions: edge-release controller replay {site.logs / CONTROLLER}/decisions.jsonl"
        )

    async def _steer(self, policy: Policy) -> None:
        """Let a controller put a policy in force, and wait until it is."""
        entry = GatewayEntry(name=GATEWAY, url=f"https://{HOST}:{self._site.ports[ADMIN]}")
        settings = self._site.folder / "controller.yaml"
        written = Settings(gateways=[entry], policy=policy).model_dump(mode="json", exclude_defaults=True)
        files.write(settings, yaml.safe_dump(written).encode())
        await self._site.steer(settings)
        end, same = time.monotonic() + _STEERED_S, _plain(policy)
        while True:
            in_force = Policy.model_validate(await self._site.look("/admin/policy"))
            if _plain(in_force) == same:
                self._say(f"   policy {in_force.version} is in force at the gateway, pushed by the controller")
                return
            if time.monotonic() > end:
                raise StageError("the controller's policy is not in force", hint=f"see {self._site.logs}")
            await asyncio.sleep(0.5)

    async def _load(
        self, name: str, golden: Sequence[GoldenPrompt], fault: str | None = None, begin: Act | None = None,
        end: Act | None = None,
    ) -> None:  # fmt: skip
        wanted, since = Load(self._plans.rate, self._plans.seconds), time.time()
        driving = asyncio.create_task(drive(self._site.url, golden, wanted, self._site.logs, name.replace(" ", "-")))
        try:
            if begin is not None and end is not None:
                await asyncio.sleep(wanted.seconds / 3)
                await begin()
                await asyncio.sleep(wanted.seconds / 3)
                await end()
            seen = await driving
        finally:
            driving.cancel()
        await asyncio.sleep(_SETTLED_S)
        phase = Phase(name, wanted, seen, journal.read(self._told(), since, time.time()), fault)
        self.found.phases.append(phase)
        self._say(f"   {phase.asked} requests, {phase.failures} failed")
        for pool in (*Pool, None):
            if times := journal.times(phase.requests, pool):
                self._say(
                    f"   {pool or 'all':7} {times.answers:5} answers, p50 {times.p50:.0f} ms, p95 {times.p95:.0f} ms"
                )
        if fault is not None:
            await self._site.until_usable(*self._site.servers)

    def _told(self) -> list[str]:
        return (self._site.logs / f"{GATEWAY}.log").read_text(encoding="utf-8").splitlines()

    def _faults(self) -> list[tuple[str, str, Act, Act]]:
        site, (_, second, third, _) = self._site, self._site.nodes

        async def freeze() -> None:
            site.signal(third, signal.SIGSTOP)

        async def thaw() -> None:
            site.signal(third, signal.SIGCONT)

        return [
            ("killed node", f"{second} is killed", lambda: site.kill(second), lambda: site.start(second)),
            ("frozen node", f"{third} is frozen", freeze, thaw),
            ("killed core", f"{LARGE} is killed", lambda: site.kill(LARGE), lambda: site.start(LARGE)),
        ]

    async def _tune(self) -> None:
        calm, site = self.found.phases[0], self._site
        told = (await site.look(STATUS_PATH))["pools"]
        slots = {Pool(p["pool"]): min(e["slots"] for e in p["endpoints"]) for p in told}
        seen = measured.scenario(calm.requests, nodes=len(site.nodes), slots=slots, policy=site.policy)
        best, tuned = await asyncio.to_thread(tune, seen, self._plans.search, self._searched, _SHARED)
        policy, self.found.tuned = best.first_policy, tuned
        files.write(site.logs / "scenario.yaml", _yaml(seen))
        files.write(site.logs / "policy.yaml", _yaml(policy))
        moved = [f"   {n}: {tuned.was[n]:g} -> {value:g}" for n, value in tuned.values.items() if value != tuned.was[n]]
        for line in moved or [f"   of {tuned.tried} policies none is better than the one in force"]:
            self._say(line)
        await self._steer(policy)


def _yaml(document: Document) -> bytes:
    return yaml.safe_dump(document.model_dump(mode="json"), sort_keys=False).encode()


def _plain(policy: Policy) -> dict[str, object]:
    return policy.model_dump(exclude={"version"})
