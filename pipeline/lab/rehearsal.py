"""One pool under the controller's own decisions, second by second, on a trace of requests.

Rules: `decide` is that of production, and sees what production would: rates over a minute, what waits now. Requests are
a fluid: a second's are served in their order by all slots, wait behind those before them, and are missed where no
replica is ready. A replica is paid from when it is asked for, and ready after its cold start, which varies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pipeline.control.actions import PreWarm, Scale
from pipeline.control.decide import decide
from pipeline.control.memory import Memory, Mode
from pipeline.control.settings import Settings
from pipeline.control.state import Expected, Gateway, Pool, Server, State

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[tuple[int], np.dtype[np.float64]]

ROUND_S = 15  # between two decisions
_RATE_S = 60  # that a rate is measured over
_JITTER = 0.1  # a cold start's standard deviation, as a share

Tell = Callable[[float], Expected | None]


@dataclass(frozen=True)
class Outcome:
    """What came of it: requests, those that waited longer than promised or were missed, and what it cost.

    `actions` are the replicas' changes, `turns` those of them that went the other way than the one before.
    """

    asked: float
    late: float
    missed: float
    usd: float
    actions: int
    turns: int

    @property
    def violations(self) -> float:
        """Requests that did not get what was promised."""
        return self.late + self.missed


@dataclass
class _Running:
    """The pool now: when each replica is ready, requests that wait, and sums."""

    ready_at: list[float]
    waiting: float = 0.0
    late: float = 0.0
    missed: float = 0.0
    replica_s: float = 0.0

    def ready(self, now: float) -> int:
        """Return how many replicas answer."""
        return sum(at <= now for at in self.ready_at)

    def resize(self, replicas: int, ready_at: Sequence[float]) -> None:
        """Start replicas, or end those first that are not ready yet."""
        more = max(replicas - len(self.ready_at), 0)
        self.ready_at = sorted([*self.ready_at, *ready_at[:more]])[:replicas]


def rehearse(arrivals: Array, start: float, settings: Settings, tell: Tell, *, wait_s: float, seed: int) -> Outcome:
    """Return what comes of the arrivals of every second from `start` on.

    Args:
        settings: with one pool.
        tell: returns what is expected at a time, or None.
        wait_s: seconds that a request may wait.
    """
    import numpy as np

    draw, pool = np.random.default_rng(seed), settings.pools[0]
    now, memory, running = start, Memory(), _Running([start])
    recent: deque[float] = deque([0.0] * _RATE_S, maxlen=_RATE_S)
    changes: list[int] = []
    per_replica = pool.slots / pool.service_s
    for begin in range(0, len(arrivals), ROUND_S):
        now = start + begin
        ready = running.ready(now)
        seen = _state(now, settings, sum(recent) / _RATE_S, running, tell(now))
        actions, memory = decide(seen, memory, settings, now)
        for action in actions:
            if isinstance(action, Scale | PreWarm):
                changes.append(action.replicas - action.was)
                cold = pool.cold_start_s * (1 + _JITTER * draw.standard_normal(action.replicas))
                running.resize(action.replicas, [now + float(s) for s in cold])
        for asked in arrivals[begin : begin + ROUND_S]:
            _second(running, float(asked), ready * per_replica, wait_s)
            recent.append(float(asked))
        running.replica_s += len(running.ready_at) * len(arrivals[begin : begin + ROUND_S])
    turns = sum((a > 0) != (b > 0) for a, b in pairwise(changes))
    usd = running.replica_s / 3600 * pool.usd_h
    return Outcome(float(arrivals.sum()), running.late, running.missed, usd, len(changes), turns)


def _second(running: _Running, asked: float, rate: float, wait_s: float) -> None:
    if rate == 0:
        running.missed += asked + running.waiting
        running.waiting = 0.0
        return
    # Of a second's requests those are late that come behind more than is served within the wait.
    most = rate * wait_s
    before, after = running.waiting, max(running.waiting + asked - rate, 0.0)
    if after > most or before > most:
        over = [max(level - most, 0.0) for level in (before, before + asked)]
        running.late += min(over[1] - over[0] if before <= most else asked, asked)
    running.waiting = after


def _state(now: float, settings: Settings, qps: float, running: _Running, expected: Expected | None) -> State:
    pool, ready = settings.pools[0], running.ready(now)
    rate = ready * pool.slots / pool.service_s
    gateway = Gateway(
        name="gateway", policy=settings.policy_of(Mode.NORMAL, 1), qps={pool.variants[0]: qps if ready else 0.0},
        missed_qps=0.0 if ready else qps, core_usable=ready, core_round_trip_ms=10.0,
    )  # fmt: skip
    server = Server(
        name="pool", pool=pool.name, ready=ready > 0, waiting=int(running.waiting),
        queue_wait_ms=running.waiting / rate * 1000 if rate else None,
    )  # fmt: skip
    return State(
        at=now,
        gateways=(gateway,),
        servers=(server,),
        pools=(Pool(pool.name, len(running.ready_at), ready, 0),),
        expected=(expected,) if expected is not None else (),
    )
