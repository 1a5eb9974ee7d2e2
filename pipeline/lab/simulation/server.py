"""A node or a large server: slots, a queue before them, and what it says of itself at its last status.

Rules: prompts are evaluated one after another, answers decoded side by side, each at the speed that is right when it
begins; a status is that of the last look at it, never of this moment; a server that went away loses what it had.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from math import exp, inf

from pipeline.lab.simulation.events import Events
from pipeline.lab.simulation.figures import Figures
from pipeline.lab.simulation.trip import Trip
from pipeline.peers.status import Pool, State

_IDLE_CPU = 0.03  # of a board that serves nobody, an assumption


class Server:
    """`said_busy`, `said_queued` and `cpu` are as of its last status; `down_at` since when nobody reaches it.

    `version` rises with each change; `still` says that further looks will see the same until there is one.

    `on_s` is how long it was switched on, `work_s` how long it had something to do; `early` are both at the
    end of the warm-up.
    """

    __slots__ = (
        "_active_at", "_edge_work", "_ended", "_epoch", "_events", "_phase", "_poll", "_spread", "busy", "cpu",
        "down_at", "early", "figures", "kept", "lane", "name", "number", "on_at", "on_s", "pool", "queue", "said_busy",
        "said_queued", "state", "still", "trips", "version", "work_s",
    )  # fmt: skip

    def __init__(
        self, name: str, number: int, figures: Figures, events: Events, *, pool: Pool, poll_s: float, phase: float,
        ended: Callable[[Trip], object],
    ) -> None:  # fmt: skip
        """Make a server that is switched off; `ended` is called with each trip that is done."""
        self.name, self.number, self.pool, self.figures = name, number, pool, figures
        self._events, self._poll, self._phase, self._ended = events, poll_s, phase, ended
        self._spread = figures.spread
        self.state, self.down_at = State.STARTING, -inf
        self.busy, self.queue = 0, deque[Trip]()
        self.trips: dict[Trip, None] = {}
        self.kept: OrderedDict[int, None] = OrderedDict()
        self.lane = 0.0
        self.version, self.still = 0, False
        self.said_busy = self.said_queued = 0
        self.cpu = _IDLE_CPU
        self._epoch, self._active_at, self._edge_work = -1, 0.0, 0.0
        self.work_s = self.on_s = 0.0
        self.early = 0.0, 0.0
        self.on_at: float | None = None

    @property
    def up(self) -> bool:
        """Whether it takes connections."""
        return self.down_at == inf

    def look(self, now: float) -> None:
        """Bring what it says up to date with the last moment at which it was asked."""
        poll = self._poll
        epoch = int((now - self._phase) // poll)
        if epoch == self._epoch:
            return
        edge = epoch * poll + self._phase
        work = self.work_s + (edge - self._active_at if self.busy and edge > self._active_at else 0.0)
        used = (work - self._edge_work) / poll if epoch == self._epoch + 1 else 1.0 if self.busy else 0.0
        self.cpu = max(_IDLE_CPU, used)
        self.still = not self.busy and used <= _IDLE_CPU
        self.said_busy, self.said_queued = self.busy, len(self.queue)
        self._epoch, self._edge_work = epoch, work

    def _changes(self, now: float) -> None:
        """Note what was said before something changes."""
        self.look(now)
        self.version, self.still = self.version + 1, False

    def turn(self, state: State) -> None:
        """Take requests again, or no more."""
        self._changes(self._events.now)
        self.state = state

    def switch_on(self, now: float) -> None:
        """Come up, empty."""
        self._changes(now)
        self.state, self.down_at, self.lane = State.READY, inf, now
        self.kept.clear()

    def paid_from(self, now: float) -> None:
        """Begin to cost."""
        if self.on_at is None:
            self.on_at = now

    def paid_to(self, now: float) -> None:
        """Cease to cost."""
        if self.on_at is not None:
            self.on_s, self.on_at = self.on_s + now - self.on_at, None

    def warmed(self, now: float) -> None:
        """Note what it has cost so far."""
        on_s = self.on_s if self.on_at is None else self.on_s + now - self.on_at
        self.early = on_s, self.work_s + (now - self._active_at if self.busy else 0.0)

    def switch_off(self, now: float) -> list[Trip]:
        """Go away; return the trips that are lost by it."""
        self._changes(now)
        self._note(now)
        lost = list(self.trips)
        for trip in lost:
            trip.due = inf
            trip.server = None
        self.trips.clear()
        self.queue.clear()
        self.busy, self.state, self.down_at = 0, State.FAILED, now
        return lost

    def take(self, trip: Trip, now: float) -> None:
        """Begin with a trip, or let it wait."""
        self._changes(now)
        self.trips[trip] = None
        trip.server, trip.first, trip.due = self, inf, inf
        if self.busy < self.figures.slots:
            self._begin(trip, now)
        else:
            self.queue.append(trip)

    def drop(self, trip: Trip, now: float) -> None:
        """Give up a trip whose client is cut off."""
        self._changes(now)
        del self.trips[trip]
        trip.server = None
        if trip.due == inf:
            self.queue.remove(trip)
            return
        trip.due = inf
        self._free(now)

    def _begin(self, trip: Trip, now: float) -> None:
        self._note(now)
        figures, others = self.figures, self.busy
        self.busy = others + 1
        luck = exp(self._spread * trip.luck) if self._spread else 1.0
        fresh = self._fresh(trip)
        start = max(now + figures.overhead_ms / 1000, self.lane)
        if others:
            start += trip.phase * figures.token_ms / 1000  # the step that is at work comes to its end first
        self.lane = first = start + (figures.prompt_ms + fresh * figures.prompt_token_ms) * luck / 1000
        step = figures.token_ms * (1 + figures.slowdown * others) * luck / 1000
        trip.first, trip.due = first, first + (trip.answer - 1) * step
        self._events.at(trip.due, self._end, trip)

    def _fresh(self, trip: Trip) -> int:
        """Return the tokens to evaluate: of a prompt that is kept, its last one."""
        key, kept = trip.prompt_id, self.kept
        if key < 0 or not self.figures.kept:
            return trip.fresh
        if key in kept:
            kept.move_to_end(key)
            return 1
        kept[key] = None
        if len(kept) > self.figures.kept:
            kept.popitem(last=False)
        return trip.fresh

    def _end(self, trip: Trip) -> None:
        now = self._events.now
        if trip.due != now or trip.server is not self:
            return  # it was lost in the meantime
        self._changes(now)
        del self.trips[trip]
        self._free(now)
        self._ended(trip)

    def _free(self, now: float) -> None:
        self._note(now)
        self.busy -= 1
        if self.queue:
            self._begin(self.queue.popleft(), now)

    def _note(self, now: float) -> None:
        """Count the time with something to do up to now."""
        if self.busy:
            self.work_s += now - self._active_at
        self._active_at = now
