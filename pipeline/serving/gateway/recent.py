"""The last hour's requests in little memory: how long answers took to begin, where requests went and why.

Rules: memory is bounded whatever comes: a histogram for each pool and minute, and the last few lines of the journal;
taking note of a request costs about a microsecond. Quantiles are read off buckets a tenth apart, and the objectives'
bounds are among the buckets', so that what they count is exact.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from pipeline.peers.slo import FAULTS, OBJECTIVES, Objective
from pipeline.peers.status import Pool
from pipeline.serving.gateway.journal import Line

LAST = 20  # requests shown one by one
HOUR = 60  # minutes
_BOUNDS_MS = sorted({1.1**n for n in range(133)} | {o.within_ms for o in OBJECTIVES if o.within_ms is not None})


def _histogram() -> list[int]:
    return [0] * (len(_BOUNDS_MS) + 1)


@dataclass(slots=True)
class _Minute:
    number: int
    begun: dict[str, list[int]] = field(default_factory=lambda: {pool: _histogram() for pool in Pool})
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: int = 0


class Recent:
    """What the status page shows of requests; times are seconds of the gateway's clock."""

    def __init__(self) -> None:
        self._minutes: deque[_Minute] = deque([_Minute(-1)], maxlen=HOUR + 1)
        self.last: deque[tuple[float, Line]] = deque(maxlen=LAST)

    def note(self, line: Line, now: float) -> None:
        """Take note of a request that ended, however it ended."""
        minute = self._minutes[-1]
        if minute.number != (number := int(now // 60)):
            minute = _Minute(number)
            self._minutes.append(minute)
        if line.outcome == "answered":
            taken_ms = line.total_ms if line.first_ms is None else line.first_ms
            minute.begun[line.pool][bisect_left(_BOUNDS_MS, taken_ms)] += 1
        elif line.code in FAULTS:
            minute.faults += 1
        if (reason := line.reason or line.code) is not None and line.counted is not None:
            minute.reasons[line.pool, reason] += 1
            self.last.append((now, line))

    def quantile_ms(self, pool: Pool, share: float, now: float, minutes: int) -> float | None:
        """Return how long the fastest `share` of a pool's answers took to begin at most; None without answers."""
        counts = self._begun(pool, now, minutes)
        wanted, upto = share * sum(counts), list(accumulate(counts))
        if not upto[-1]:
            return None
        n = bisect_left(upto, wanted)
        if n == len(_BOUNDS_MS):
            return _BOUNDS_MS[-1]
        low = _BOUNDS_MS[n - 1] if n else 0.0
        return low + (_BOUNDS_MS[n] - low) * (wanted - (upto[n] - counts[n])) / counts[n]

    def answers(self, pool: Pool, now: float, minutes: int) -> int:
        """Return how many answers a pool gave."""
        return sum(self._begun(pool, now, minutes))

    def burn(self, objective: Objective, now: float, minutes: int) -> float | None:
        """Return how fast an objective's budget was used up; None without requests."""
        return objective.burn(*self.missed(objective, now, minutes))

    def missed(self, objective: Objective, now: float, minutes: int) -> tuple[int, int]:
        """Return how many requests missed an objective, and how many it was asked of."""
        pools = [objective.pool] if objective.pool else list(Pool)
        rows = [m.begun[pool] for m in self._since(now, minutes) for pool in pools]
        answered = sum(map(sum, rows))
        if objective.within_ms is None:
            faults = sum(m.faults for m in self._since(now, minutes))
            return faults, answered + faults
        late = bisect_left(_BOUNDS_MS, objective.within_ms) + 1
        return sum(sum(row[late:]) for row in rows), answered

    def reasons(self, now: float, minutes: int) -> list[tuple[str, str, int]]:
        """Return pools and reasons with how often they were, the most frequent first."""
        found: Counter[tuple[str, str]] = Counter()
        for minute in self._since(now, minutes):
            found.update(minute.reasons)
        return [(pool, reason, count) for (pool, reason), count in found.most_common()]

    def _begun(self, pool: Pool, now: float, minutes: int) -> list[int]:
        rows = [m.begun[pool] for m in self._since(now, minutes)]
        return [sum(each) for each in zip(*rows, strict=True)] if rows else _histogram()

    def _since(self, now: float, minutes: int) -> Iterator[_Minute]:
        """The minutes that lie within the last ones, the current one besides, which is not over yet."""
        return (m for m in self._minutes if m.number >= int(now // 60) - minutes)
