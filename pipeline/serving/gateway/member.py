"""One endpoint as this gateway knows it: what it said last, how far it is, how it fares.

Rules: what a status says is believed only within what the settings and the release allow: the pool is the settings'.
Times in seconds are an argument.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from pipeline.peers.status import ServerStatus, State
from pipeline.serving.gateway.breaker import Breaker, Circuit
from pipeline.serving.gateway.settings import Effort, EndpointEntry
from pipeline.serving.snapshot import Endpoint

MISSED = 2  # looks at a state in a row that may fail before the endpoint counts as gone
_WEIGHT = 0.2  # of the newest measurement in a mean


@dataclass
class Member:
    """The changing side of one endpoint.

    `drained` says that an operator took it out; `changed` that its part of the snapshot is out of date; `attempts` are
    tasks that wait for it to begin an answer, `lost` those of them that were ended because it fell silent.
    """

    entry: EndpointEntry
    breaker: Breaker
    flights: dict[str, int]
    status: ServerStatus | None = None
    problem: str = "not heard of yet"
    missed: int = MISSED
    trips: deque[float] = field(default_factory=lambda: deque(maxlen=5))
    service_ms: float | None = None
    token_ms: float | None = None
    changed: bool = True
    drained: bool = False
    attempts: set[asyncio.Task[object]] = field(default_factory=set)
    lost: set[asyncio.Task[object]] = field(default_factory=set)

    @classmethod
    def of(cls, entry: EndpointEntry, effort: Effort, flights: dict[str, int]) -> Member:
        """Return a member that was not heard of yet; `flights` counts requests under way, for all members."""
        flights[entry.name] = 0
        return cls(entry, Breaker(effort.circuit_failures, effort.circuit_pause_s, effort.circuit_longest_s), flights)

    @property
    def in_flight(self) -> int:
        """Requests of this gateway that the endpoint has."""
        return self.flights[self.name]

    @property
    def is_full(self) -> bool:
        """Whether a further request may have to wait for a slot there."""
        return self.in_flight >= max(self.status.slots if self.status else 1, 1)

    @property
    def heard_of(self) -> bool:
        """Whether it said lately how it is."""
        return self.missed < MISSED

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def round_trip_ms(self) -> float:
        """The least of the last round trips: what is added by a busy moment says nothing of the distance."""
        return min(self.trips, default=0.0)

    def heard(self, status: ServerStatus, round_trip_ms: float) -> None:
        """Take note of what the endpoint says of itself."""
        self.trips.append(round_trip_ms)
        self.missed, self.changed, self.status = 0, True, status
        self.problem = status.reason or ""
        if status.pool is not self.entry.pool:
            self.status, self.problem = None, f"it says it is in the pool {status.pool}"

    def silent(self, problem: str) -> None:
        """Take note of a look that failed; attempts that wait for an endpoint that is gone end."""
        self.missed, self.changed, self.problem = self.missed + 1, True, problem
        if self.missed >= MISSED:
            for task in self.attempts - self.lost:
                self.lost.add(task)
                task.cancel()

    def began(self, now: float) -> None:
        """Take note of a request that is sent to it."""
        self.flights[self.name] += 1
        self._turn(self.breaker.began(now))

    def ended(self) -> None:
        """Take note of a request's end, however it ended."""
        self.flights[self.name] -= 1

    def worked(self) -> None:
        """Take note of an answer that began."""
        if self.breaker.failures:
            self._turn(self.breaker.succeeded())

    def failed(self, now: float) -> None:
        """Take note of a failure of its own."""
        self._turn(self.breaker.failed(now))

    def released(self) -> None:
        """Take note of a request that was called off."""
        if self.breaker.probing:
            self._turn(self.breaker.released())

    def took(self, total_ms: float, tokens: int, *, queued: bool) -> None:
        """Take note of how long an answer took; one that may have waited in a queue says nothing of the work."""
        if queued:
            return
        self.service_ms = mean(self.service_ms, total_ms)
        if tokens > 1:
            self.token_ms = mean(self.token_ms, total_ms / tokens)

    def circuit(self, now: float) -> Circuit:
        """Return what its circuit does."""
        return self.breaker.circuit(now)

    def endpoint(self, now: float) -> Endpoint:
        """Return it as routing sees it."""
        status = self.status if self.missed < MISSED else None
        served = status.served if status else None
        return Endpoint(
            name=self.name,
            url=self.entry.base,
            pool=self.entry.pool,
            state=self._state(),
            variant=served.variant if served else None,
            digest=served.model_sha256 if served else None,
            slots=status.slots if status else 0,
            busy=status.busy if status else 0,
            queued=status.queued if status else 0,
            context=status.context if status else 0,
            cpu=status.cpu if status else None,
            round_trip_ms=self.round_trip_ms,
            service_ms=self.service_ms,
            token_ms=self.token_ms,
            open=self.circuit(now) is not Circuit.OPEN,
        )

    def _state(self) -> State:
        if self.status is None or self.missed >= MISSED:
            return State.FAILED
        return State.DRAINING if self.drained else self.status.state

    def _turn(self, breaker: Breaker) -> None:
        if breaker is not self.breaker:
            self.breaker, self.changed = breaker, True


def mean(before: float | None, value: float) -> float:
    """Return a moving mean after a further value."""
    return value if before is None else before + _WEIGHT * (value - before)
