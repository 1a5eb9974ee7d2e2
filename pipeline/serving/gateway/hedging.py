"""When a slow endpoint is given up on for a second one, within a budget.

Rules: a quantile of recent times, of the same pool and kind of answer, is what counts as slow; asking twice costs a
token of a bucket that fills by a share of all requests, so that a slow fleet is not asked twice for everything
(Dean and Barroso 2013, The Tail at Scale, doi:10.1145/2408776.2408794).
"""

from __future__ import annotations

from collections import deque

from pipeline.peers.status import Pool
from pipeline.serving.gateway.settings import Effort

_KEPT = 256
_ANEW = 16  # answers between two computations of the quantile
_MOST = 10.0  # tokens the bucket holds

Kind = tuple[Pool, bool]


class Hedging:
    """Recent times to the first bytes, and the budget."""

    def __init__(self, effort: Effort) -> None:
        self._effort = effort
        self._times: dict[Kind, deque[float]] = {}
        self._delays: dict[Kind, float] = {}
        self._seen = 0
        self._tokens = 1.0

    def saw(self, kind: Kind, seconds: float) -> None:
        """Take note of an answer's time to its first bytes."""
        times = self._times.setdefault(kind, deque(maxlen=_KEPT))
        times.append(seconds)
        self._seen += 1
        self._tokens = min(self._tokens + self._effort.hedge_budget, _MOST)
        if len(times) >= self._effort.hedge_after and (kind not in self._delays or self._seen % _ANEW == 0):
            self._delays[kind] = sorted(times)[int(len(times) * self._effort.hedge_quantile)]

    def delay_s(self, kind: Kind) -> float | None:
        """Return when a second endpoint may be asked; None while too little is known, or it costs too much."""
        return self._delays.get(kind) if self._tokens >= 1 else None

    def spend(self) -> bool:
        """Take a token; return whether there was one."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
