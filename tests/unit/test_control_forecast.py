"""What is expected of a pool, from what it was asked for before."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.control.calendar import Window, factor
from pipeline.control.forecast import DAY_S, Forecast, Outlook, Series, learn, outlook
from pipeline.control.history import History, Kept
from pipeline.control.settings import PoolSettings, Settings
from pipeline.control.state import Expected

STEP = 1800.0
DAY = int(DAY_S / STEP)
RULES = Forecast(step_s=STEP)
MONDAY = 1_780_272_000.0  # 2026-06-01 00:00 UTC
HOURS = int(3600 / STEP)


def week(day: int) -> list[float | None]:
    """Return a day: nobody at night, 4 requests/s from nine to nine, 30 when it opens; nobody on Sundays."""
    if day % 7 == 6:
        return [0.0] * DAY
    return [30.0 if i == 9 * HOURS else 4.0 if 9 * HOURS < i < 21 * HOURS else 0.0 for i in range(DAY)]


def weeks(days: int) -> Series:
    return Series(MONDAY, STEP, tuple(v for day in range(days) for v in week(day)))


def told(series: Series, *windows: Window, rules: Forecast = RULES) -> Outlook:
    season = learn(series, windows, rules)
    assert season is not None
    found = outlook(season, series, DAY_S, windows, rules)
    assert found is not None
    return found


def window(first_day: float, days: float, times: float = 0.0, *, weekly: bool = False) -> Window:
    start, end = (datetime.fromtimestamp(MONDAY + day * DAY_S, UTC) for day in (first_day, first_day + days))
    return Window(name="known", start=start, end=end, factor=times, weekly=weekly)


def test_a_rush_is_expected_when_it_comes_every_day() -> None:
    """The opening is foreseen to its bucket, the night is nothing, and an hour before is still nothing."""
    found = told(weeks(21))
    assert found.most(found.start + 9 * 3600, found.start + 9 * 3600) == pytest.approx(30, rel=0.15)
    assert found.most(found.start + 7 * 3600, found.start + 8 * 3600) == 0
    assert found.most(found.start, found.start + 5 * 3600) == 0


def test_a_day_of_the_week_is_known_after_two_weeks() -> None:
    """Nobody comes on Sundays; with a week of history that is not known yet."""
    sunday = told(weeks(27))
    assert sunday.most(sunday.start, sunday.start + DAY_S - STEP) == pytest.approx(0, abs=1.0)
    unknown = told(weeks(6))
    assert (unknown.most(unknown.start, unknown.start + DAY_S - STEP) or 0) > 20


def test_less_than_two_days_foretell_nothing() -> None:
    """Neither does a history that is unknown for the most part."""
    assert learn(weeks(1), (), RULES) is None
    holes = replace(weeks(3), values=tuple(None if i % 3 else v for i, v in enumerate(weeks(3).values)))
    assert learn(holes, (), RULES) is None


def test_unknown_buckets_are_filled_from_other_days() -> None:
    """A day without figures changes little."""
    series = weeks(21)
    values = [None if 9 * DAY <= i < 10 * DAY else v for i, v in enumerate(series.values)]
    found, usual = told(replace(series, values=tuple(values))), told(series)
    assert found.values == pytest.approx(usual.values, abs=4.0)


def test_a_known_window_multiplies_what_is_usual() -> None:
    """A holiday ahead expects nobody, a sale twice as many; one of the past does not count as usual."""
    usual, holiday, sale = told(weeks(21)), told(weeks(21), window(21, 1)), told(weeks(21), window(21, 1, 2.0))
    assert set(holiday.values) == {0.0}
    at = 9 * HOURS
    assert sale.values[at] == pytest.approx(2 * usual.values[at])
    closed = weeks(21)
    values = [0.0 if 14 * DAY <= i < 15 * DAY else v for i, v in enumerate(closed.values)]
    blind, knows = (told(replace(closed, values=tuple(values)), *w) for w in ((), (window(14, 1),)))
    assert knows.values[at] == pytest.approx(usual.values[at], rel=0.1)
    assert blind.values[at] < knows.values[at]


def test_windows_repeat_where_they_are_weekly() -> None:
    """The same hours of every week hold, others do not, and none before the first."""
    cleaning = window(2.5, 0.25, weekly=True)
    inside = MONDAY + 2.6 * DAY_S
    assert [cleaning.holds(inside + k * 7 * DAY_S) for k in (-1, 0, 1, 9)] == [False, True, True, True]
    assert not cleaning.holds(inside + DAY_S)
    assert factor([window(0, 1, 0.5), window(0, 2, 3.0)], MONDAY) == 0.5
    assert factor([], MONDAY) is None


@pytest.mark.parametrize(
    "given_",
    [
        pytest.param({"start": "2026-06-02T00:00:00Z", "end": "2026-06-01T00:00:00Z"}, id="backwards"),
        pytest.param({"start": "2026-06-01T00:00:00", "end": "2026-06-02T00:00:00Z"}, id="no time zone"),
        pytest.param({"start": "2026-06-01T00:00:00Z", "end": "2026-06-08T00:00:00Z", "weekly": True}, id="a whole week"),
    ],
)  # fmt: skip
def test_windows_that_mean_nothing_are_refused(given_: dict[str, object]) -> None:
    """A window has a beginning, an end after it, and a zone."""
    import json

    with pytest.raises(ValueError, match=r"start|window"):
        Window.model_validate_json(json.dumps({"name": "a", **given_}))


@given(st.lists(st.none() | st.floats(0, 1000, allow_nan=False), min_size=2 * DAY, max_size=4 * DAY))
def test_whatever_was_asked_the_future_is_finite_and_never_negative(values: list[float | None]) -> None:
    """The same series tells the same, and nothing but numbers of requests."""
    series = Series(MONDAY, STEP, tuple(values))
    season = learn(series, (), RULES)
    assert season == learn(series, (), RULES)
    found = outlook(season, series, DAY_S, (), RULES) if season else None
    assert found is None or all(math.isfinite(v) and v >= 0 for v in found.values)


def test_history_is_kept_in_buckets_and_survives_a_restart() -> None:
    """Means of what was known; what was not, or was slept through, is unknown; the file brings it back."""
    rules = Settings(pools=[PoolSettings(name="large")], forecast=Forecast(step_s=60.0))
    history = History(rules)
    for at, rate in ((0.0, 1.0), (30.0, 3.0), (60.0, None), (120.0, 5.0), (300.0, 6.0)):
        history.add(at, {"large": rate})
    kept = history.kept()
    assert kept == Kept(step_s=60.0, end=300.0, pools={"large": [2.0, None, 5.0, None, None]})
    again = History(rules)
    assert kept is not None
    again.restore(kept)
    assert again.kept() == kept
    assert again.expected(310.0) == ()


def test_history_is_bounded_and_tells_what_to_be_ready_for() -> None:
    """After the days of the settings the oldest go; what is expected reaches to when a replica could be ready."""
    pool = PoolSettings(name="large", cold_start_s=600.0)
    rules = Settings(pools=[pool], forecast=Forecast(step_s=STEP, days=20, lead_s=0.0))
    history = History(rules)
    for day in range(22):
        for i, rate in enumerate(week(day)):
            history.add(MONDAY + day * DAY_S + i * STEP, {"large": rate})
    kept = history.kept()
    assert kept is not None
    assert len(kept.pools["large"]) == 20 * DAY
    at = MONDAY + 22 * DAY_S
    history.add(at, {"large": 0.0})
    (early,) = history.expected(at)
    assert early == Expected("large", 0.0, at + 600.0)
    for i in range(9 * HOURS):
        history.add(at + i * STEP, {"large": 0.0})
    before = at + 9 * 3600 - 500
    (soon,) = history.expected(before)
    assert soon.qps > 20


def test_forecasts_can_be_turned_off() -> None:
    """Then nothing is expected, whatever was."""
    rules = Settings(forecast=Forecast(enabled=False))
    history = History(rules)
    history.restore(Kept(step_s=300.0, end=MONDAY, pools={"nvlink": [1.0] * 6000}))
    assert history.expected(MONDAY) == ()
