"""Traffic of whole weeks, seeded: requests a second at every minute, for what is rehearsed before it is rolled out.

Rules: a pattern and a seed give the same trace everywhere; every day differs from every other by its size and by some
minutes; days begin at midnight UTC, weeks on Mondays.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[tuple[int], np.dtype[np.float64]]
    Rng = np.random.Generator

DAY_MIN = 24 * 60
MONDAY = 1_780_272_000.0  # 2026-06-01 00:00 UTC


class Pattern(StrEnum):
    """Kinds of traffic."""

    DIURNAL = "diurnal"
    RETAIL = "retail"
    INDUSTRIAL = "industrial"


def trace(pattern: Pattern, seed: int, days: int, closed: frozenset[int] = frozenset()) -> Array:
    """Return requests a second for every minute of some days; on days `closed` nobody comes."""
    import numpy as np

    draw = np.random.default_rng([seed, *pattern.encode()])
    found = [_PATTERNS[pattern](draw, day % 7) for day in range(days)]
    return np.concatenate([np.zeros(DAY_MIN) if day in closed else rates for day, rates in enumerate(found)])


def _diurnal(draw: Rng, weekday: int) -> Array:
    import numpy as np

    minute = np.arange(DAY_MIN, dtype=float)
    size = draw.lognormal(0, 0.12) * (0.55 if weekday >= 5 else 1.0)
    bell = np.exp(-(((minute - 14 * 60 - draw.normal(0, 15)) / 200) ** 2))
    return _rough(draw, size * (1.5 + 28 * bell))


def _retail(draw: Rng, weekday: int) -> Array:
    """A shop: closed at night and on Sundays, a rush when it opens, a smaller one after work."""
    import numpy as np

    if weekday == 6:
        return np.zeros(DAY_MIN)
    minute, size = np.arange(DAY_MIN, dtype=float), draw.lognormal(0, 0.15)
    opens = 9 * 60 + draw.normal(0, 2)
    open_ = (minute >= opens - 10) & (minute < 21 * 60)
    rush = _burst(minute, opens, 3, 25) * 50 + _burst(minute, 17.5 * 60 + draw.normal(0, 8), 15, 50) * 22
    return _rough(draw, open_ * size * (5 + rush))


def _industrial(draw: Rng, weekday: int) -> Array:
    """A plant: three shifts, and when they change everybody asks for the summary of the last one."""
    import numpy as np

    minute, size = np.arange(DAY_MIN, dtype=float), draw.lognormal(0, 0.1) * (0.4 if weekday >= 5 else 1.0)
    bursts = [_burst(minute, hour * 60 + draw.normal(0, 2.5), 4, 14) for hour in (6, 14, 22)]
    return _rough(draw, size * (3 + 45 * np.sum(bursts, axis=0)))


def _burst(minute: Array, at: float, rise: float, fall: float) -> Array:
    """Return 1 at a minute, less before and after it, by how long it takes to rise and to fall."""
    import numpy as np

    away = minute - at
    return np.where(away < 0, np.exp(-((away / rise) ** 2)), np.exp(-np.clip(away, 0, None) / fall))


def _rough(draw: Rng, rates: Array) -> Array:
    """Return rates with what no day repeats: some minutes above, some below."""
    import numpy as np

    steps = draw.normal(0, 0.06, DAY_MIN)
    slow = np.convolve(steps, np.exp(-np.arange(60) / 12), mode="same")
    found: Array = rates * np.exp(slow - slow.var() / 2)
    return found


_PATTERNS: dict[Pattern, Callable[[Rng, int], Array]] = {
    Pattern.DIURNAL: _diurnal,
    Pattern.RETAIL: _retail,
    Pattern.INDUSTRIAL: _industrial,
}
