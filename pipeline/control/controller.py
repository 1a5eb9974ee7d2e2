"""One controller: it looks, decides, writes down what it decided, and does it, round after round.

Rules: only who leads decides; all look, so that a new leader knows the past; a round that fails ends nothing, the next
one begins anew; what could not be written down is not done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic_core import from_json

from pipeline.catalog.document import check
from pipeline.control import cluster as kubernetes
from pipeline.control.act import Actor, Did
from pipeline.control.actions import Action, Evict, SetPolicy
from pipeline.control.decide import decide
from pipeline.control.demand import loads
from pipeline.control.fetch import Fetch
from pipeline.control.gateways import Gateways
from pipeline.control.history import History, Kept
from pipeline.control.log import Log, Round
from pipeline.control.memory import Memory
from pipeline.control.metrics import Metrics
from pipeline.control.scrape import Seen
from pipeline.control.settings import Settings
from pipeline.control.state import State
from pipeline.errors import PipelineError
from pipeline.ports import files
from pipeline.ports.kube import Cluster

_log = logging.getLogger(__name__)
HISTORY, LOG = "history.json", "decisions.jsonl"
_SILENT = 3  # rounds without which one is not ready


class Leads(Protocol):
    """Whether this controller may act."""

    problem: str

    @property
    def leads(self) -> bool: ...

    def look(self) -> bool: ...

    def end(self) -> None: ...


@dataclass(frozen=True)
class Parts:
    """What a controller is made of; `now` gives seconds since 1970, `folder` holds its log and history."""

    settings: Settings
    look: Callable[[], Awaitable[Seen]]
    fetch: Fetch
    gateways: Gateways
    leader: Leads
    folder: Path
    say: Callable[[str], None]
    cluster: Cluster | None = None
    dry_run: bool = False
    now: Callable[[], float] = time.time


@dataclass
class Controller:
    """Its memory, and what it counts."""

    parts: Parts
    metrics: Metrics = field(default_factory=Metrics)
    memory: Memory = field(default_factory=Memory)
    rounds: int = 0
    last: Round | None = None
    _led: bool = False
    _told: frozenset[str] = frozenset()
    _ended_at: float | None = None
    history: History = field(init=False)
    log: Log = field(init=False)

    def __post_init__(self) -> None:
        self.history = History(self.parts.settings)
        self.log = Log(self.parts.folder / LOG, self.parts.settings)
        self._restore()

    @property
    def problem(self) -> str | None:
        """Why this one is not ready; None where it is."""
        if self._ended_at is None:
            return "no round ended yet"
        silent = time.monotonic() - self._ended_at
        most = _SILENT * (self.parts.settings.looking.round_s + self.parts.settings.looking.answer_s)
        return f"no round ended for {silent:.0f} s" if silent > most else None

    async def run(self, end: asyncio.Event) -> None:
        """Go on until the end is set; then let another one lead."""
        renewing = asyncio.create_task(self._renew())
        try:
            while not end.is_set():
                began = time.monotonic()
                await self.once()
                left = self.parts.settings.looking.round_s - (time.monotonic() - began)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(end.wait(), max(left, 0.0))
        finally:
            renewing.cancel()
            await asyncio.to_thread(self.parts.leader.end)
            self.log.close()

    async def once(self) -> list[Did]:
        """Do one round; raises nothing of what can go wrong in it."""
        try:
            did = await self._round()
        except PipelineError as e:
            self._say({f"nothing was done: {e.message}"})
            did = []
        except Exception as e:  # a fleet whose controller ended for one odd answer is steered no more
            _log.exception("a round failed")
            self._say({f"nothing was done: {type(e).__name__}: {e}"})
            did = []
        self.rounds, self._ended_at = self.rounds + 1, time.monotonic()
        return did

    async def _round(self) -> list[Did]:
        parts = self.parts
        with self.metrics.look.time():
            state = await self._state()
        leads = parts.leader.leads
        if leads and not self._led:
            self.memory = Memory()  # another one may have acted meanwhile
            parts.say("leads")
        self._led = leads
        unanswered = len(parts.fetch.problems)
        if not leads:
            self.metrics.follows(unanswered)
            return []
        with self.metrics.decision.time():
            actions, after = decide(state, self.memory, parts.settings, state.at)
        self.last = Round(state.at, not parts.dry_run, state, self.memory, actions)
        self.log.write(self.last)
        self.memory = after
        did = [] if parts.dry_run else await self._actor().do(actions)
        self.metrics.leads(state, after, did, unanswered)
        for done in did:
            parts.say(told(done))
        return did

    async def _state(self) -> State:
        parts, settings = self.parts, self.parts.settings
        parts.fetch.problems.clear()
        seen, found = await asyncio.gather(parts.look(), asyncio.to_thread(self._cluster))
        at = parts.now()
        asked = {name: load.qps for name, load in loads(seen.gateways, seen.servers, settings.pools).items()}
        if self.history.add(at, asked):
            await asyncio.to_thread(self._keep)
        expected = await asyncio.to_thread(self.history.expected, at)
        self._say({*(f"{url}: {said}" for url, said in parts.fetch.problems.items()), *found.problems})
        return State(
            at, seen.gateways, seen.nodes, seen.servers, found.pools, found.hosts, found.pods, found.budgets, expected
        )

    def _cluster(self) -> kubernetes.Found:
        if self.parts.cluster is None:
            return kubernetes.Found()
        found = kubernetes.look(self.parts.cluster, self.parts.settings)
        problem = self.parts.leader.problem
        return found if not problem else kubernetes.with_problem(found, problem)

    def _actor(self) -> Actor:
        parts = self.parts
        return Actor(parts.fetch, parts.settings, parts.gateways, lambda: parts.leader.leads, parts.cluster)

    async def _renew(self) -> None:
        while True:
            await asyncio.to_thread(self.parts.leader.look)
            await asyncio.sleep(self.parts.settings.acting.lease_s / 5)

    def _restore(self) -> None:
        path = self.parts.folder / HISTORY
        if path.exists():
            try:
                self.history.restore(files.load(path, lambda text, name: check(from_json(text), Kept, name)))
            except (PipelineError, ValueError) as e:
                self.parts.say(f"{path} begins anew: {e}")

    def _keep(self) -> None:
        kept = self.history.kept()
        if kept is not None:
            files.write(self.parts.folder / HISTORY, kept.model_dump_json().encode())

    def _say(self, problems: set[str]) -> None:
        """Say what is new of what is wrong."""
        for problem in sorted(problems - self._told):
            self.parts.say(problem)
        self._told = frozenset(problems)


def described(action: Action) -> str:
    """Return an action in a line."""
    match action:
        case SetPolicy():
            what = f"policy {action.policy.version} at {action.gateway}"
        case Evict():
            what = f"evict {action.namespace}/{action.pod}"
        case _:
            what = f"{action.kind} {action.pool} from {action.was} to {action.replicas}"
    return f"{what} ({action.reason}{': ' if action.detail else ''}{action.detail})"


def told(done: Did) -> str:
    """Return an action and what became of it in a line."""
    return f"{described(done.action)}: {done.outcome}{', ' if done.detail else ''}{done.detail}"
