"""What each pool was asked for, in buckets, and what is expected of that.

Rules: bounded by the days of the settings; a bucket in which nothing was known stays unknown; it is kept on the disk at
every bucket's end, and a file that cannot be read is begun anew, for it only makes the controller less foresighted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import Field

from pipeline.catalog.document import Document
from pipeline.control.forecast import DAY_S, Outlook, Season, Series, learn, outlook
from pipeline.control.settings import Settings
from pipeline.control.state import Expected

_HORIZON_S = 7200.0


class Kept(Document):
    """The file: requests a second of each pool, in buckets of `step_s` that end at `end` (seconds since 1970)."""

    step_s: float
    end: float
    pools: dict[str, list[float | None]] = Field(default_factory=dict)


@dataclass
class History:
    """All pools' series, and what was learned of them."""

    settings: Settings
    _values: dict[str, list[float | None]] = field(default_factory=dict)
    _end: float | None = None
    _open: dict[str, list[float]] = field(default_factory=dict)
    _seasons: dict[str, tuple[float, Season | None]] = field(default_factory=dict)
    _outlooks: dict[str, Outlook | None] = field(default_factory=dict)

    def add(self, at: float, qps: Mapping[str, float | None]) -> bool:
        """Take in what pools are asked for now; return whether a bucket ended."""
        step, ended = self.settings.forecast.step_s, False
        begin = at // step * step
        if self._end is None or begin < self._end - DAY_S:  # a clock that was far ahead; what it left is worth nothing
            self._values.clear()
            self._end = begin
        if begin > self._end:
            self._close(begin)
            ended = True
        for pool, rate in qps.items():
            if rate is not None:
                self._open.setdefault(pool, []).append(rate)
        return ended

    def expected(self, at: float) -> tuple[Expected, ...]:
        """Return what is expected of each pool until its replicas could be ready; nothing where nothing is known."""
        rules = self.settings.forecast
        if not rules.enabled or self._end is None:
            return ()
        found = []
        for pool in self.settings.pools:
            told, until = self._outlook(pool.name), at + pool.cold_start_s + rules.lead_s
            most = None if told is None else told.most(at, until)
            if most is not None:
                found.append(Expected(pool.name, most, until))
        return tuple(found)

    def kept(self) -> Kept | None:
        """Return what is to be kept on the disk."""
        if self._end is None:
            return None
        return Kept(step_s=self.settings.forecast.step_s, end=self._end, pools=self._values)

    def restore(self, kept: Kept) -> None:
        """Go on from what was kept; buckets of another length mean nothing."""
        if kept.step_s == self.settings.forecast.step_s:
            self._end, self._values = kept.end, {pool: list(values) for pool, values in kept.pools.items()}

    def _close(self, begin: float) -> None:
        assert self._end is not None, "set when the first was taken in"
        step = self.settings.forecast.step_s
        most = int(self.settings.forecast.days * DAY_S / step)
        missed = min(int((begin - self._end) / step) - 1, most)
        for pool in self.settings.pools:
            rates = self._open.get(pool.name)
            values = self._values.setdefault(pool.name, [])
            values += [sum(rates) / len(rates) if rates else None, *[None] * missed]
            del values[:-most]
        self._end = begin
        self._open.clear()
        self._outlooks.clear()

    def _outlook(self, pool: str) -> Outlook | None:
        if pool not in self._outlooks:
            self._outlooks[pool] = self._told(pool)
        return self._outlooks[pool]

    def _told(self, pool: str) -> Outlook | None:
        rules, windows = self.settings.forecast, self.settings.windows
        values = tuple(self._values.get(pool, ()))
        assert self._end is not None, "asked for only then"
        series = Series(self._end - rules.step_s * len(values), rules.step_s, values)
        learned_at, season = self._seasons.get(pool, (-rules.learn_s, None))
        if self._end - learned_at >= rules.learn_s:
            season = learn(series, windows, rules)
            self._seasons[pool] = self._end, season
        return None if season is None else outlook(season, series, _HORIZON_S, windows, rules)
