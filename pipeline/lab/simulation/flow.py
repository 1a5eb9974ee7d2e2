"""How requests pass through the fleet: the gateway's steps around `route`, as its proxy.py takes them.

Rules: every request that arrives ends once, as an answer, a refusal or a failure. What is tried, in which order, how
often, and how long an endpoint and a whole answer are waited for are the gateway's own settings. Nothing is asked of
two endpoints at once (no hedging).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

from pipeline.lab.simulation.door import Door, Seen
from pipeline.lab.simulation.events import Events
from pipeline.lab.simulation.record import DENIED, POOLS, REASONS, Outcome, Record
from pipeline.lab.simulation.scenario import Kind, Scenario
from pipeline.lab.simulation.server import Server
from pipeline.lab.simulation.traffic import Row
from pipeline.lab.simulation.trip import Trip
from pipeline.peers.slo import FAULTS
from pipeline.peers.status import Pool
from pipeline.serving.decision import Choice, Decision, Declined, Denied, Reason, Request
from pipeline.serving.gateway.attempts import PAUSE_S
from pipeline.serving.gateway.member import MISSED
from pipeline.serving.gateway.proxy import BUSY
from pipeline.serving.gateway.queueing import LOOK_S, RANK
from pipeline.serving.gateway.settings import Effort, Limits
from pipeline.serving.routing import route

_POOL = {pool: number for number, pool in enumerate(POOLS)}
_REASON = {reason: number for number, reason in enumerate(REASONS)}
_DENIED = {reason: number for number, reason in enumerate(DENIED)}
EDGE_FAST_MS, EDGE_LATE_MS, LATE_MS = 80.0, 300.0, 150.0  # as pipeline/peers/slo.py promises


class Flow:
    """All requests of a run; `inside` are those on their way, `area` their sum over time, in seconds."""

    def __init__(self, scenario: Scenario, events: Events, doors: Sequence[Door]) -> None:
        """Stand between the doors and the servers."""
        self.events, self.doors, self.record = events, doors, Record()
        self._kinds: list[Kind] = list(scenario.traffic.kinds.values())
        self._edge_jitter_ms = scenario.edge.jitter_ms
        self._core_jitter_ms = scenario.core.jitter_ms if scenario.core else 0.0
        self._poll_s, self._limits, self._effort = scenario.poll_s, Limits(), Effort()
        self._limits_s = [min(self._limits.answer_s, (k.deadline_ms or inf) / 1000) for k in self._kinds]
        self._tickets = count()
        self.arrived = self.inside = 0
        self.area = self._area_at = 0.0

    def arrive(self, row: Row) -> None:
        """Take a request in."""
        at, site, number, fresh, _, prompt_id, _, _, _ = row
        kind = self._kinds[number]
        request = Request(
            fresh + kind.common, kind.max_tokens, kind.hint, None, kind.sensitive, kind.priority, kind.deadline_ms,
            f"p{prompt_id}" if prompt_id >= 0 else f"n{self.arrived}",
        )  # fmt: skip
        self.arrived += 1
        self._count(at, 1)
        self._place(Trip(row, self.doors[site], request, self._limits_s[number]))

    def _count(self, now: float, change: int) -> None:
        self.area += self.inside * (now - self._area_at)
        self._area_at = now
        self.inside += change

    def _place(self, trip: Trip) -> None:
        door, now = trip.door, self.events.now
        found = route(trip.request, door.snapshot(now), door.policy)
        if isinstance(found, Decision):
            trip.decision, trip.choices = found, (found.choice, *found.alternatives)
            self._send(trip, found.choice)
        else:
            self._declined(trip, found, now)

    def _declined(self, trip: Trip, found: Declined, now: float) -> None:
        door, limits = trip.door, self._limits
        if trip.until is None:
            trip.until = now + limits.wait_s
            trip.ticket = RANK[trip.request.priority], next(self._tickets)
        if found.reason not in BUSY or now >= trip.until or len(door.waiting) >= limits.waiting:
            self._refused(trip, found.reason, now)
            return
        trip.waits = True
        heappush(door.waiting, (trip.ticket, trip))
        self._bound(trip)
        self.events.at(min(now + LOOK_S, trip.until), self._again, trip)

    def _again(self, trip: Trip) -> None:
        """Ask routing again for a request that waits."""
        if trip.waits:
            self._leave(trip)
            self._place(trip)

    def _leave(self, trip: Trip) -> None:
        """Take a request out of those that wait."""
        trip.waits = False
        trip.door.waiting.remove((trip.ticket, trip))
        heapify(trip.door.waiting)

    def _wake(self, door: Door) -> None:
        """Let the first that waits ask again, where there is one."""
        if not door.waiting:
            return
        _, trip = heappop(door.waiting)
        trip.waits = False
        self._place(trip)

    def _send(self, trip: Trip, choice: Choice) -> None:
        door, now = trip.door, self.events.now
        seen = door.seen[choice.endpoint]
        trip.queued = door.flights[choice.endpoint] >= seen.server.figures.slots
        trip.sent = now
        door.began(seen, now)
        if seen.reachable:
            seen.server.take(trip, now)
            silent_at = now + self._limits.first_s
            if trip.first > silent_at and self._kinds[trip.kind].stream:
                self.events.at(silent_at, self._silent, (trip, seen, now))
        else:
            self.events.at(now + self._limits.connect_s, self._unreached, (trip, seen))
        self._bound(trip)

    def _silent(self, what: tuple[Trip, Seen, float]) -> None:
        """Give up an endpoint that has not begun its answer."""
        trip, seen, sent = what
        now = self.events.now
        if trip.server is seen.server and trip.sent == sent and trip.first > now:
            seen.server.drop(trip, now)
            self._unreached((trip, seen))

    def _bound(self, trip: Trip) -> None:
        """See to it that a request ends at its limit, where it is not known to end before."""
        if trip.due > trip.limit and not trip.bounded:
            trip.bounded = True
            self.events.at(trip.limit, self._expire, trip)

    def _expire(self, trip: Trip) -> None:
        """Call off a request whose time is up."""
        now, door, server = self.events.now, trip.door, trip.server
        if trip.done:
            return
        if trip.waits:
            self._leave(trip)
        elif server is not None:
            server.drop(trip, now)
            door.left(door.seen[server.name])
        self._timed_out(trip, now)
        self._wake(door)

    def _timed_out(self, trip: Trip, now: float) -> None:
        trip.door.tally.faults += 1
        ms = (trip.limit - trip.at) * 1000
        self._note(trip, now, ms, ms, (-1, -1, Outcome.TIMEOUT))

    def ended(self, trip: Trip) -> None:
        """Take note of an answer that is complete."""
        assert trip.server is not None
        assert trip.decision is not None
        door, server, now = trip.door, trip.server, self.events.now
        seen = door.seen[server.name]
        door.flights[server.name] -= 1
        door.worked(seen)
        jitter_ms = self._edge_jitter_ms if server.pool is Pool.EDGE else self._core_jitter_ms
        way_ms = seen.trip_ms + jitter_ms * trip.way
        if not trip.queued:
            seen.took((now - trip.sent) * 1000 + way_ms, trip.answer)
        begun = trip.first if trip.begun is None else trip.begun
        self._answered(trip, trip.choices[trip.attempts % len(trip.choices)], begun, now, way_ms)
        self._wake(door)

    def _answered(self, trip: Trip, choice: Choice, begun: float, now: float, way_ms: float) -> None:
        assert trip.decision is not None
        if now + way_ms / 1000 > trip.limit:
            self._timed_out(trip, now)
            return
        total = (now - trip.at) * 1000 + way_ms
        counted = (begun - trip.at) * 1000 + way_ms if self._kinds[trip.kind].stream else total
        outcome = Outcome.DEGRADED if choice.degraded else Outcome.ANSWERED
        tally, edge = trip.door.tally, choice.pool is Pool.EDGE
        if edge:
            tally.edge += 1
            tally.edge_slow += counted > EDGE_FAST_MS
            tally.edge_late += counted > EDGE_LATE_MS
        else:
            tally.core += 1
        tally.late += counted > LATE_MS
        tally.missed += choice.degraded
        why = _REASON[trip.decision.why(choice, trip.instead)]
        self._note(trip, now, counted, total, (_POOL[choice.pool], why, outcome))

    def _refused(self, trip: Trip, reason: Denied, now: float) -> None:
        trip.door.tally.faults += reason in FAULTS
        trip.door.tally.missed += not trip.request.sensitive
        ms = (now - trip.at) * 1000
        self._note(trip, now, ms, ms, (-1, _DENIED[reason], Outcome.REFUSED))

    def _note(self, trip: Trip, now: float, counted: float, total: float, end: tuple[int, int, Outcome]) -> None:
        self._count(now, -1)
        trip.done = True
        record = self.record
        record.at.append(trip.at)
        record.ended.append(now)
        record.counted_ms.append(counted)
        record.total_ms.append(total)
        record.pool.append(end[0])
        record.why.append(end[1])
        record.outcome.append(end[2])
        record.kind.append(trip.kind)
        record.retried.append(trip.instead is not None)

    def lost(self, trip: Trip, server: Server) -> None:
        """Take note of a request whose server went away, or the way to it."""
        now, seen = self.events.now, trip.door.seen[server.name]
        self._bound(trip)
        if now >= trip.first:
            self.events.at(now + self._limits.chunk_s, self._continue, (trip, seen, now))
        else:
            self.events.at(now + MISSED * self._poll_s, self._unreached, (trip, seen))

    def _unreached(self, what: tuple[Trip, Seen]) -> None:
        """Try the next endpoint."""
        trip, seen = what
        now = self.events.now
        if trip.done:
            trip.door.left(seen)
            return
        trip.door.flights[seen.server.name] -= 1
        trip.door.failed(seen, now)
        trip.attempts, trip.instead = trip.attempts + 1, Reason.RETRY
        if trip.attempts >= self._effort.attempts:
            self._failed(trip)
        elif trip.attempts >= len(trip.choices):
            self.events.at(now + PAUSE_S, self._retry, trip)
        else:
            self._retry(trip)

    def _retry(self, trip: Trip) -> None:
        if not trip.done:
            self._send(trip, trip.choices[trip.attempts % len(trip.choices)])

    def _continue(self, what: tuple[Trip, Seen, float]) -> None:
        """Go on elsewhere with an answer that broke off."""
        trip, seen, broke = what
        now, door = self.events.now, trip.door
        if trip.done:
            door.left(seen)
            return
        door.flights[seen.server.name] -= 1
        door.failed(seen, now)
        trip.begun = trip.first if trip.begun is None else trip.begun
        request = replace(trip.request, excluded=trip.request.excluded | {seen.server.name})
        found = route(request, door.snapshot(now), door.policy)
        if isinstance(found, Declined) or len(request.excluded) > self._effort.continuations:
            self._failed(trip)
            return
        done = min(int((broke - trip.first) * 1000 / seen.server.figures.token_ms) + 1, trip.answer - 1)
        trip.request, trip.answer, trip.fresh = request, max(trip.answer - done, 1), trip.fresh + done
        trip.prompt_id, trip.instead, trip.attempts = -1, Reason.CONTINUED, 0
        trip.decision, trip.choices = found, (found.choice, *found.alternatives)
        self._send(trip, found.choice)

    def _failed(self, trip: Trip) -> None:
        now = self.events.now
        trip.door.tally.faults += 1
        ms = (now - trip.at) * 1000
        self._note(trip, now, ms, ms, (-1, -1, Outcome.FAILED))
