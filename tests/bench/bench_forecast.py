"""What pre-warming by forecast is worth beside reacting alone: the same week, the same decisions, with and without it.

Run `make bench-forecast`. Three weeks of a pattern are history, the fourth is rehearsed. Parameters were chosen on
the seeds TUNING, what is reported are the seeds REPORTED, which were looked at once they were. A retail week has a holiday
that the calendar knows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from pipeline.control.calendar import Window
from pipeline.control.forecast import Forecast, Outlook, Season, Series, learn, outlook
from pipeline.control.settings import PoolSettings, Settings
from pipeline.control.state import Expected
from pipeline.lab.rehearsal import Outcome, rehearse
from pipeline.lab.traces import DAY_MIN, MONDAY, Pattern, trace

TUNING, REPORTED = range(100, 103), range(1, 6)
HISTORY, DAYS = 21, 28
HOLIDAY = 24  # a Thursday of the week that is rehearsed
WAIT_S = 0.5
TELL_S = 900.0  # between two looks at the level
DAY_S = 86400.0
POOL = PoolSettings(name="large", most=16, slots=8, service_s=1.0, cold_start_s=180.0, usd_h=10.0)
SETTINGS = Settings(pools=[POOL])


@dataclass
class Teller:
    """Tells what is expected from what was asked for until then; looks at the whole history every `refit_s`."""

    asked: np.ndarray  # requests of every second since MONDAY
    rules: Forecast
    windows: list[Window]
    season: Season | None = None
    found: Outlook | None = None
    learned_at: float = -1e12
    told_at: float = -1e12
    spent_s: float = 0.0
    looks: int = 0

    def __call__(self, now: float) -> Expected | None:
        began = time.process_time()
        if now - self.learned_at >= self.rules.learn_s:
            self.learned_at, self.season = now, learn(self._series(now), self.windows, self.rules)
            self.spent_s, self.looks = self.spent_s + time.process_time() - began, self.looks + 1
        if self.season is not None and now - self.told_at >= TELL_S:
            self.told_at, self.found = now, outlook(self.season, self._series(now), 7200.0, self.windows, self.rules)
        until = now + POOL.cold_start_s + self.rules.lead_s
        most = self.found.most(now, until) if self.found else None
        return Expected(POOL.name, most, until) if most is not None else None

    def _series(self, now: float) -> Series:
        step = int(self.rules.step_s)
        end = int(now - MONDAY) // step
        first = max(0, end - int(self.rules.days * DAY_S) // step)
        rates = self.asked[first * step : end * step].reshape(-1, step).mean(axis=1)
        return Series(MONDAY + first * step, float(step), tuple(map(float, rates)))


def week(pattern: Pattern, seed: int) -> tuple[np.ndarray, list[Window]]:
    """Return the requests of every second of four weeks, and what the calendar knows."""
    closed = frozenset({HOLIDAY}) if pattern is Pattern.RETAIL else frozenset()
    rates = trace(pattern, seed, DAYS, closed)
    windows = [
        Window(
            name="holiday",
            start=datetime.fromtimestamp(MONDAY + day * DAY_S, UTC),
            end=datetime.fromtimestamp(MONDAY + (day + 1) * DAY_S, UTC),
        )
        for day in closed
    ]
    draw = np.random.default_rng(seed + 1_000_000)
    return draw.poisson(np.repeat(rates, 60)).astype(float), windows


def compared(pattern: Pattern, seed: int, rules: Forecast, settings: Settings) -> tuple[Outcome, Outcome, Teller]:
    """Return the outcome of reacting alone, that with forecasts, and who told."""
    asked, windows = week(pattern, seed)
    start, tested = MONDAY + HISTORY * DAY_S, asked[HISTORY * DAY_MIN * 60 :]
    alone = rehearse(tested, start, settings, lambda _: None, wait_s=WAIT_S, seed=seed)
    teller = Teller(asked, rules, windows)
    return alone, rehearse(tested, start, settings, teller, wait_s=WAIT_S, seed=seed), teller


def main(seeds: range, rules: Forecast, patterns: Iterable[Pattern] = Pattern, settings: Settings = SETTINGS) -> None:
    """Print a line for each pattern and seed, and each pattern's sums."""
    head = f"{'pattern':<11}{'seed':>5}{'requests':>10}{'reactive':>10}{'forecast':>10}{'fewer':>8}{'cost':>7}{'turns':>10}"
    print(head)
    for pattern in patterns:
        pairs = []
        for seed in seeds:
            alone, told, teller = compared(pattern, seed, rules, settings)
            pairs.append((alone, told))
            show(f"{pattern:<11}{seed:>5}", alone, told)
        both = [
            [sum(getattr(o, f) for o in side) for f in Outcome.__dataclass_fields__]
            for side in zip(*pairs, strict=True)
        ]
        show(f"{pattern:<11}{'all':>5}", Outcome(*both[0]), Outcome(*both[1]))
        print(f"  {teller.spent_s / max(teller.looks, 1) * 1000:.0f} ms CPU a look at the history", file=sys.stderr)


def show(name: str, alone: Outcome, told: Outcome) -> None:
    """Print two outcomes in a line."""
    fewer = alone.violations / told.violations if told.violations else float("inf")
    print(
        f"{name}{alone.asked:>10.0f}{alone.violations:>10.0f}{told.violations:>10.0f}{fewer:>7.1f}x"
        f"{told.usd / alone.usd:>6.2f}x{alone.turns:>5}{told.turns:>5}", flush=True,
    )  # fmt: skip


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--tuning", action="store_true", help="the seeds that parameters are chosen on")
    options.add_argument("--pattern", type=Pattern, action="append", help="of traffic; repeatable (default: all)")
    options.add_argument("--rules", default="{}", help="JSON of pipeline.control.forecast.Forecast, to try others")
    given = options.parse_args()
    rules = Forecast.model_validate_json(given.rules)
    main(TUNING if given.tuning else REPORTED, rules, given.pattern or Pattern)
