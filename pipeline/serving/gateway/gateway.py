"""The gateway as a whole: what is held, what runs beside the requests, and whether it is ready.

Rules: the release is looked at again and again, a fault of one look ends nothing; until there is one, and until its
vocabulary was fetched, the gateway is alive but not ready.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline.errors import PipelineError
from pipeline.serving.decision import Counted
from pipeline.serving.gateway.asking import Asking
from pipeline.serving.gateway.breaker import Circuit
from pipeline.serving.gateway.callers import Callers
from pipeline.serving.gateway.fleet import Fleet
from pipeline.serving.gateway.journal import Write
from pipeline.serving.gateway.metrics import Metrics, Row
from pipeline.serving.gateway.proxy import Proxy
from pipeline.serving.gateway.release import Held, Source, refresh, tokenizer
from pipeline.serving.gateway.settings import Settings
from pipeline.serving.gateway.tokens import ByteCounter, Counter, counter
from pipeline.serving.gateway.tracing import Tracing
from pipeline.serving.gateway.upstream import Client
from pipeline.serving.status import State

_log = logging.getLogger(__name__)
_FLUSH_S = 0.2  # between two writes of the journal: one for each line would cost more than the line
_RENEW_S = 5.0  # between two looks at the certificate
_SOON_S = 1.0  # between two looks at the channel while there is no release at all


@dataclass(frozen=True)
class Parts:
    """What a gateway is made of.

    `write` takes lines of the journal, `flush` makes them seen; `clock` gives seconds that never run back; servers are
    called with `tls`, and `renew` looks at its certificate again and says in a line what changed, if anything.
    """

    settings: Settings
    source: Source
    callers: Callers
    tracing: Tracing
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
class Gateway:
    """One running gateway; `counts` says that the vocabulary was looked for, `draining` that it ends."""

    parts: Parts
    held: Held = field(default_factory=Held)
    metrics: Metrics = field(default_factory=Metrics)
    draining: bool = False
    counts: bool = False
    fleet: Fleet = field(init=False)
    proxy: Proxy = field(init=False)
    _client: Client = field(init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fleet = Fleet.of(self.parts.settings, self.parts.clock)
        self._gauges()

    async def start(self) -> None:
        """Look at the release and the endpoints, and go on looking."""
        parts = self.parts
        self._client = Client(parts.settings.limits, parts.tls)
        asking = Asking(self.fleet, self._client, self.metrics, parts.clock)
        self.proxy = Proxy(
            parts.settings, asking, parts.callers, ByteCounter(), parts.tracing, parts.write, parts.new_id
        )
        self._tasks = [
            asyncio.create_task(self.fleet.watch(self._client, parts.settings.poll_s)),
            asyncio.create_task(self._watch()),
            asyncio.create_task(self._flush()),
            asyncio.create_task(self._renew()),
        ]

    async def stop(self) -> None:
        """End what runs beside the requests."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()
        self.parts.tracing.close()
        self.parts.flush()

    def problems(self) -> list[str]:
        """Return why the gateway is not ready; nothing where it is."""
        found = ["draining"] if self.draining else []
        if not self.fleet.offers:
            found.append(self.held.problem or "no release that has not expired")
        elif not any(e.state is State.READY and e.open and self._serves(e) for e in self.fleet.snapshot().endpoints):
            found.append("no endpoint is ready with a variant of the release")
        if self.fleet.offers and not self.counts:
            found.append("the tokenizer is on its way: prompts are bounded by their bytes")
        return found

    def _serves(self, endpoint: Any) -> bool:
        return self.fleet.snapshot().serves(endpoint) is not None

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

    async def _look(self) -> None:
        parts, before = self.parts, self.held
        self.held = await asyncio.to_thread(refresh, before, parts.source, parts.now())
        if self.held.problem:
            self.metrics.release_problems.inc()
        if self.held.problem != before.problem:
            _log.warning("release %s is served: %s", self.held.version, self.held.problem or "the channel's newest")
        grace = timedelta(seconds=parts.settings.grace_s)
        self.fleet.offer(self.held.offers(parts.now(), grace))
        if self.held.current is not None and self.held.current is not before.current:
            self.proxy.counter = await asyncio.to_thread(self._counter)
            self.counts = True

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
        add("gateway_in_flight", "Requests at work.", [], lambda: [({}, float(self.proxy.in_flight))])
        add("gateway_waiting", "Requests that wait for a place.", [], lambda: [({}, float(len(self.proxy.waiting)))])
        exact = "Whether prompts are counted by the variant's tokenizer (1), or bounded by their bytes (0)."
        add("gateway_tokenizer", exact, [], lambda: [({}, float(self.proxy.counter.counted is Counted.TOKENIZER))])
        add(
            "gateway_policy_version",
            "The policy in use.",
            [],
            lambda: [({}, float(self.parts.settings.policy.version))],
        )
        add("gateway_endpoint_usable", "Whether requests may go to an endpoint.", ["endpoint", "pool"], self._usable)
        trip = "The least of an endpoint's last round trips."
        add("gateway_endpoint_round_trip_seconds", trip, ["endpoint", "pool"], self._trips)
        add("gateway_circuit_closed", "Whether an endpoint's circuit is closed.", ["endpoint", "pool"], self._circuits)

    def _usable(self) -> list[Row]:
        snapshot = self.fleet.snapshot()
        return [
            ({"endpoint": e.name, "pool": e.pool}, float(e.state is State.READY and e.open and self._serves(e)))
            for e in snapshot.endpoints
        ]

    def _trips(self) -> list[Row]:
        members = self.fleet.members.values()
        return [({"endpoint": m.name, "pool": m.entry.pool}, m.round_trip_ms / 1000) for m in members]

    def _circuits(self) -> list[Row]:
        now = self.parts.clock()
        return [
            ({"endpoint": m.name, "pool": m.entry.pool}, float(m.circuit(now) is Circuit.CLOSED))
            for m in self.fleet.members.values()
        ]
