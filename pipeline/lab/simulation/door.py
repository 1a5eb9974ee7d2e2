"""A site's gateway: what it knows of its servers, and the snapshot that `route` gets.

Rules: it learns by looking at every server once in `poll_s` and by its own requests, as the gateway does (member.py): a
server that was silent twice counts as gone, three failures open its circuit. A snapshot is made anew only where
something in it changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from operator import is_

from pipeline.lab.simulation.server import Server
from pipeline.lab.simulation.trip import Trip
from pipeline.peers.policy import Policy
from pipeline.peers.status import Pool, State
from pipeline.serving.gateway.breaker import Breaker, Circuit
from pipeline.serving.gateway.member import MISSED, mean
from pipeline.serving.snapshot import Endpoint, Offered, Snapshot


class Seen:
    """One server as this gateway knows it; `version` is the server's, where looking again would show nothing new."""

    __slots__ = ("breaker", "cut_at", "endpoint", "offered", "server", "service_ms", "token_ms", "trip_ms", "version")

    def __init__(self, server: Server, offered: Offered, trip_ms: float) -> None:
        """Know nothing of it but where it is."""
        self.server, self.offered, self.trip_ms = server, offered, trip_ms
        self.breaker = Breaker()
        self.cut_at, self.version = inf, -1
        self.service_ms: float | None = None
        self.token_ms: float | None = None
        self.endpoint: Endpoint | None = None

    @property
    def reachable(self) -> bool:
        """Whether a connection would be taken now."""
        return self.cut_at == inf and self.server.up

    def took(self, total_ms: float, tokens: int) -> None:
        """Take note of an answer that did not wait in a queue."""
        self.version = -1
        self.service_ms = mean(self.service_ms, total_ms)
        if tokens > 1:
            self.token_ms = mean(self.token_ms, total_ms / tokens)

    def cut(self, at: float) -> None:
        """Be out of reach from a time on, infinite to be in reach again."""
        self.cut_at, self.version = at, -1

    def turn(self, breaker: Breaker) -> None:
        """Take another state of its circuit."""
        self.breaker, self.version = breaker, -1

    def look(self, now: float, poll_s: float) -> Endpoint:
        """Return it as routing sees it from now on; the one from before where nothing changed."""
        server, before = self.server, self.endpoint
        if not server.still:
            server.look(now)
        silent_at = min(self.cut_at, server.down_at)
        gone = now - silent_at >= MISSED * poll_s
        state = State.FAILED if gone else server.state if silent_at == inf else State.READY
        is_open = self.breaker.until is None or self.breaker.circuit(now) is not Circuit.OPEN
        steady = server.still and self.breaker.until is None and (gone or silent_at == inf)
        self.version = server.version if steady else -1
        cpu = server.cpu if server.pool is Pool.EDGE else None
        if before is not None and (
            before.busy == server.said_busy and before.queued == server.said_queued and before.cpu == cpu
            and before.state is state and before.open is is_open
            and before.service_ms == self.service_ms and before.token_ms == self.token_ms
        ):  # fmt: skip
            return before
        figures = server.figures
        self.endpoint = found = Endpoint(
            server.name, server.name, server.pool, state, self.offered.name, self.offered.digest, figures.slots,
            server.said_busy, server.said_queued, figures.context, cpu, self.trip_ms, self.service_ms, self.token_ms,
            is_open,
        )  # fmt: skip
        return found


@dataclass(slots=True)
class Tally:
    """Requests that ended since the controller last looked.

    `late` are answers beyond 300 ms from the edge and beyond 150 ms from anywhere; `missed` were meant for
    the NVLink pool.
    """

    edge: int = 0
    edge_slow: int = 0
    edge_late: int = 0
    core: int = 0
    late: int = 0
    faults: int = 0
    missed: int = 0


class Door:
    """The gateway of a site."""

    __slots__ = (
        "_changed", "_epoch", "_members", "_offered", "_phase", "_poll", "_snapshot", "flights", "name", "policy",
        "pool", "seen", "site", "tallies", "tally", "waiting",
    )  # fmt: skip

    def __init__(
        self, name: str, site: int, seen: Sequence[Seen], *, offered: Mapping[tuple[str, str], Offered], policy: Policy,
        poll_s: float, phase: float, pool: int,
    ) -> None:  # fmt: skip
        """Stand before some servers."""
        self.name, self.site, self.policy, self.pool = name, site, policy, pool
        self.seen = {s.server.name: s for s in seen}
        self.flights = dict.fromkeys(self.seen, 0)
        self.waiting: list[tuple[tuple[int, int], Trip]] = []
        self.tally, self.tallies = Tally(), deque[Tally]()
        self._members, self._offered = tuple(seen), offered
        self._poll, self._phase, self._epoch, self._changed = poll_s, phase, -1, True
        self._snapshot = Snapshot((), offered, self.flights)

    def snapshot(self, now: float) -> Snapshot:
        """Return the servers as they were at the last look."""
        epoch = int((now - self._phase) // self._poll)
        if epoch != self._epoch or self._changed:
            self._epoch, self._changed = epoch, False
            before = self._snapshot.endpoints
            found = tuple(
                [
                    s.endpoint if s.version == s.server.version and s.endpoint else s.look(now, self._poll)
                    for s in self._members
                ]
            )
            if len(found) != len(before) or not all(map(is_, found, before)):
                self._snapshot = Snapshot(found, self._offered, self.flights)
        return self._snapshot

    def failed(self, seen: Seen, now: float) -> None:
        """Take note of a server's failure."""
        seen.turn(seen.breaker.failed(now))
        self._changed = True

    def began(self, seen: Seen, now: float) -> None:
        """Take note of a request that is sent."""
        self.flights[seen.server.name] += 1
        if seen.breaker.until is not None:
            seen.turn(seen.breaker.began(now))
            self._changed = True

    def left(self, seen: Seen) -> None:
        """Take note of a request that was called off, which says nothing of its server."""
        self.flights[seen.server.name] -= 1
        if seen.breaker.probing:
            seen.turn(seen.breaker.released())
            self._changed = True

    def worked(self, seen: Seen) -> None:
        """Take note of an answer that began."""
        if seen.breaker.failures:
            seen.turn(seen.breaker.succeeded())
            self._changed = True
