"""What a pool will be asked for, from what it was asked for at the same time of other days.

Rules: pure, and the same for the same series; days and, from two weeks on, weeks repeat; what known windows did to the
past is taken out, what they will do is put in; less than two days of history foretell nothing.
Method: R. B. Cleveland et al. 1990, STL; K. Bandara et al. 2021, MSTL; the level by simple exponential smoothing, all
from statsmodels. Square roots are taken first, because the spread of counts grows with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.catalog.document import Document
from pipeline.control.calendar import Window, factor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[tuple[int], np.dtype[np.float64]]

DAY_S = 86400.0
_WEEK = 7  # days
_NEAR = 1  # buckets to each side, whose spread counts too: people are not on time to the minute


class Forecast(Document):
    """How the future is told."""

    enabled: Annotated[
        bool, Field(description="whether replicas are warmed by it; else the controller only reacts")
    ] = True
    step_s: Annotated[float, Field(ge=60, le=3600, description="s of a bucket: shorter ones are noise")] = 300.0
    days: Annotated[int, Field(ge=2, le=60, description="days of history that are kept: three weeks show a week")] = 21
    spread: Annotated[
        float, Field(gt=0, lt=1, description="quantile of past errors at that time of day that is added")
    ] = 0.75
    level: Annotated[
        float, Field(gt=0, le=1, description="weight of the last bucket in the level: of an hour or so at 0.1")
    ] = 0.1
    floor_qps: Annotated[
        float, Field(ge=0, description="requests/s; to expect fewer is to expect none, not worth a warm replica")
    ] = 0.1
    lead_s: Annotated[
        float, Field(ge=0, description="s that replicas are to be warm before they are needed, beside the cold start")
    ] = 120.0
    learn_s: Annotated[float, Field(ge=60, description="s between two looks at the whole history")] = 21600.0


@dataclass(frozen=True, slots=True)
class Series:
    """Mean requests a second in buckets of `step_s` from `start` on; None where that is unknown."""

    start: float
    step_s: float
    values: tuple[float | None, ...]

    @property
    def end(self) -> float:
        """When the last bucket ends."""
        return self.start + self.step_s * len(self.values)


@dataclass(frozen=True, slots=True)
class Season:
    """What repeats, in square roots of requests a second: `values` of a day or a week, from the time `anchor` on.

    `spread` is what was more than that at each time of day.
    """

    anchor: float
    step_s: float
    values: tuple[float, ...]
    spread: tuple[float, ...]

    def at(self, time: float) -> float:
        """Return the value at a time."""
        return self.values[int((time - self.anchor) // self.step_s) % len(self.values)]

    def more(self, time: float) -> float:
        """Return the spread at a time."""
        return self.spread[int((time - self.anchor) // self.step_s) % len(self.spread)]


@dataclass(frozen=True, slots=True)
class Outlook:
    """Requests a second to be ready for, in buckets from `start` on."""

    start: float
    step_s: float
    values: tuple[float, ...]

    def most(self, begin: float, end: float) -> float | None:
        """Return the most that is expected between two times; None where that is not told."""
        first, last = (int((at - self.start) // self.step_s) for at in (begin, end))
        if first < 0 or last >= len(self.values):
            return None
        return max(self.values[first : last + 1])


def learn(series: Series, windows: Sequence[Window], rules: Forecast) -> Season | None:
    """Return what repeats in a series; None where there is too little to tell."""
    import numpy as np
    from statsmodels.tsa.seasonal import MSTL, STL

    day = round(DAY_S / series.step_s)
    filled = _filled(series, day, windows)
    if filled is None:
        return None
    roots, week = np.sqrt(filled), day * _WEEK
    # Curves that are smooth over a day need not be fitted at every bucket: fifty times faster, and the same.
    jumps = {"trend_jump": day // 4, "low_pass_jump": day // 4}
    if len(roots) > 2 * week:  # of exactly two weeks MSTL leaves the week out
        fitted = MSTL(roots, periods=(day, week), stl_kwargs=jumps).fit()
        seasonal, period = fitted.seasonal.sum(axis=1), week
    else:
        fitted = STL(roots, period=day, **jumps).fit()
        seasonal, period = fitted.seasonal, day
    spread = _spread(fitted.resid, day, rules.spread)
    return Season(series.end, series.step_s, tuple(map(float, seasonal[-period:])), tuple(map(float, spread)))


def outlook(
    season: Season, series: Series, horizon_s: float, windows: Sequence[Window], rules: Forecast
) -> Outlook | None:
    """Return what is expected from a series' end on, by its last day; None where nothing of that is known."""
    level = _level(season, series, windows, rules)
    if level is None:
        return None
    told = []
    for i in range(math.ceil(horizon_s / series.step_s)):
        at = series.end + i * series.step_s
        usual = max(level + season.at(at) + season.more(at), 0.0) ** 2
        known = factor(windows, at)
        usual *= 1.0 if known is None else known
        told.append(usual if usual >= rules.floor_qps else 0.0)
    return Outlook(series.end, series.step_s, tuple(told))


def _level(season: Season, series: Series, windows: Sequence[Window], rules: Forecast) -> float | None:
    """Return how far above its season a series is now, smoothed."""
    import numpy as np
    from statsmodels.tsa.holtwinters import SimpleExpSmoothing

    day = round(DAY_S / series.step_s)
    first = max(len(series.values) - day, 0)
    times = [series.start + i * series.step_s for i in range(first, len(series.values))]
    above = [
        math.sqrt(value) - season.at(at)
        for at, value in zip(times, series.values[first:], strict=True)
        if value is not None and factor(windows, at) is None
    ]
    if len(above) < 2:
        return None
    smooth = SimpleExpSmoothing(np.array(above), initialization_method="known", initial_level=above[0])
    return float(smooth.fit(smoothing_level=rules.level, optimized=False).forecast(1)[0])


def _filled(series: Series, day: int, windows: Sequence[Window]) -> Array | None:
    """Return the series; what is missing or was not as usual is taken from a week before or after, else from a day."""
    import numpy as np

    if len(series.values) < 2 * day:
        return None
    usual = [
        math.nan if v is None or factor(windows, series.start + i * series.step_s) is not None else v
        for i, v in enumerate(series.values)
    ]
    found = np.array(usual, dtype=float)
    if np.isnan(found).mean() > 0.5:
        return None
    for away in (_WEEK * day, -_WEEK * day, day, -day):
        for i in np.flatnonzero(np.isnan(found))[:: 1 if away > 0 else -1]:
            if 0 <= i - away < len(found):
                found[i] = found[i - away]
    whole: Array = np.nan_to_num(found, nan=float(np.nanmean(found)))
    return whole


def _spread(residuals: Array, day: int, quantile: float) -> Array:
    """Return, for each time of day from the series' end on, the quantile of what was more than the season said."""
    import numpy as np

    whole = residuals[len(residuals) % day :].reshape(-1, day)
    near = np.concatenate([np.roll(whole, shift, axis=1) for shift in range(-_NEAR, _NEAR + 1)])
    found: Array = np.clip(np.quantile(near, quantile, axis=0), 0, None)
    return found
