"""What is known beside the requests, and kept current: the release, the endpoints, the tokenizer, and who may ask.

Rules: the release is looked at again and again, a fault of one look ends nothing; until there is one, and until its
vocabulary was fetched, whoever watches is alive but not ready.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pipeline.errors import PipelineError
from pipeline.peers.status import Served
from pipeline.serving.decision import Counted
from pipeline.serving.gateway.breaker import Circuit
from pipeline.serving.gateway.callers import Callers
from pipeline.serving.gateway.fleet import Fleet
from pipeline.serving.gateway.journal import Write
from pipeline.serving.gateway.metrics import Metrics, Row
from pipeline.serving.gateway.release import Held, Source, refresh, tokenizer
from pipeline.serving.gateway.settings import Settings
from pipeline.serving.gateway.tokens import ByteCounter, Counter, counter
from pipeline.serving.gateway.upstream import Client

_log = logging.getLogger(__name__)
_FLUSH_S = 0.2  # between two writes of the journal: one for each line would cost more than the line
_RENEW_S = 5.0  # between two looks at the certificate
_SOON_S = 1.0  # between two looks at the channel while there is no release at all
_EARLY_S = 2.0  # that a server's state waits for a look at the channel, which may be out of reach
_NAMED = 64  # manifests that servers named and that are not looked for again at once


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a watcher is made of.

    `write` takes lines of the journal, `flush` makes them seen; `clock` gives seconds that never run back; servers are
    called with `tls`, and `renew` looks at its certificate again and says in a line what changed, if anything.
    """

    settings: Settings
    source: Source
    callers: Callers
    write: Write
    flush: Callable[[], object]
    clock: Callable[[], float]
    new_id: Callable[[], str]
    tls: ssl.SSLContext | None = None
    renew: Callable[[], str | None] = lambda: None

    def now(self) -> datetime:
        """Return the time by which releases expire."""
        return datetime.now(UTC)


@dataclass
class Watcher:
    """What decides has one; `counts` says that the vocabulary was looked for, `draining` that it ends."""

    parts: Parts
    held: Held = field(default_factory=Held)
    metrics: Metrics = field(default_factory=Metrics)
    counter: Counter = field(default_factory=ByteCounter)
    draining: bool = False
    counts: bool = False
    fleet: Fleet = field(init=False)
    client: Client = field(init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _early: asyncio.Task[None] | None = None
    _named: deque[str] = field(default_factory=lambda: deque(maxlen=_NAMED))

    def __post_init__(self) -> None:
        self.fleet = Fleet.of(self.parts.settings, self.parts.clock)
        self._gauges()

    async def start(self) -> None:
        """Look at the release and the endpoints, and go on looking."""
        settings = self.parts.settings
        self.client = Client(settings.limits, self.parts.tls)
        work = self.fleet.watch(self.client, settings.poll_s, self._learn), self._watch(), self._flush(), self._renew()
        self._tasks = [asyncio.create_task(w) for w in work]

    async def stop(self) -> None:
        """End what runs beside the requests."""
        tasks = [*self._tasks, *([self._early] if self._early else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.client.close()
        self.parts.flush()

    def problems(self) -> list[str]:
        """Return why requests cannot be answered; nothing where they can."""
        found = ["draining"] if self.draining else []
        if not self.fleet.offers:
            found.append(self.held.problem or "no release that has not expired")
        elif not self.fleet.snapshot().usable:
            found.append("no endpoint is ready with a variant of the release")
        if self.fleet.offers and not self.counts:
            found.append("the tokenizer is on its way: prompts are bounded by their bytes")
        return found

    def use(self, found: Counter) -> None:
        """Count by this from now on."""
        self.counter, self.counts = found, True

    def usable(self) -> set[str]:
        """Return the endpoints that requests may go to, by name."""
        return {endpoint.name for endpoint, _ in self.fleet.snapshot().usable}

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_S)
            self.parts.flush()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            if said := self.parts.renew():
                _log.warning("%s", said)

    async def _watch(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(self.parts.settings.release_s if self.held.current else _SOON_S)
            try:
                self.parts.callers.reload()
            except PipelineError as e:
                _log.warning("API keys stay as they were: %s", e.message)

    async def _learn(self, served: Served) -> None:
        """Look at the channel at once, the first time that a server names a manifest that is not held."""
        manifest = served.manifest_sha256
        if self.held.knows(manifest):
            return
        if manifest not in self._named:
            self._named.append(manifest)
            self._early = asyncio.create_task(self._look())
        if self._early is not None:
            await asyncio.wait({self._early}, timeout=_EARLY_S)

    async def _look(self) -> None:
        async with self._looking:
            await self._look_once()

    async def _look_once(self) -> None:
        parts, before = self.parts, self.held
        self.held = await asyncio.to_thread(refresh, before, parts.source, parts.now())
        if self.held.problem:
            self.metrics.release_problems.inc()
        if self.held.problem != before.problem:
            _log.warning("release %s is served: %s", self.held.version, self.held.problem or "the channel's newest")
        grace = timedelta(seconds=parts.settings.grace_s)
        self.fleet.offer(self.held.offers(parts.now(), grace))
        if self.held.current is not None and self.held.current is not before.current:
            self.use(await asyncio.to_thread(self._counter))

    def _counter(self) -> Counter:
        assert self.held.current is not None, "tokens are counted by a release"
        try:
            return counter(tokenizer(self.parts.source, self.held.current, self.parts.now()))
        except PipelineError as e:
            _log.warning("tokens are bounded by bytes: %s", e.message)
            return ByteCounter()

    def _gauges(self) -> None:
        add = self.metrics.gauges
        add("gateway_release_version", "The release in use.", [], lambda: [({}, float(self.held.version))])
        add("gateway_release_expires_timestamp_seconds", "When it may no longer be served.", [], self._expires)
        exact = "Whether prompts are counted by the variant's tokenizer (1), or bounded by their bytes (0)."
        add("gateway_tokenizer", exact, [], lambda: [({}, float(self.counter.counted is Counted.TOKENIZER))])
        add("gateway_policy_version", "The policy in use.", [], lambda: [({}, float(self.fleet.policy.version))])
        add("gateway_endpoint_usable", "Whether requests may go to an endpoint.", ["endpoint", "pool"], self._usable)
        trip = "The least of an endpoint's last round trips."
        add("gateway_endpoint_round_trip_seconds", trip, ["endpoint", "pool"], self._trips)
        add("gateway_circuit_closed", "Whether an endpoint's circuit is closed.", ["endpoint", "pool"], self._circuits)

    def _expires(self) -> list[Row]:
        current = self.held.current
        return [({}, current.manifest.expires.timestamp())] if current else []

    def _usable(self) -> list[Row]:
        usable, members = self.usable(), self.fleet.members.values()
        return [({"endpoint": m.name, "pool": m.entry.pool}, float(m.name in usable)) for m in members]

    def _trips(self) -> list[Row]:
        members = self.fleet.members.values()
        return [({"endpoint": m.name, "pool": m.entry.pool}, m.round_trip_ms / 1000) for m in members]

    def _circuits(self) -> list[Row]:
        now = self.parts.clock()
        return [
            ({"endpoint": m.name, "pool": m.entry.pool}, float(m.circuit(now) is Circuit.CLOSED))
            for m in self.fleet.members.values()
        ]
