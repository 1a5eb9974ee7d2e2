"""Joules from readings: a power integrated over time, a counter's gain.

Rules: a reading that fails makes the whole unknown (None), because what happened meanwhile is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol


class Joules(Protocol):
    """Joules of one source from its first reading to its last, None where one failed."""

    source: str

    @property
    def joules(self) -> float | None: ...
    def add(self, at_s: float, /) -> None:
        """Take a reading, said to be of `at_s` seconds."""


class Power:
    """Integrates watts that are read now and then, by the trapezoid rule."""

    def __init__(self, source: str, watts: Callable[[], float | None]) -> None:
        self.source, self._watts = source, watts
        self._last: tuple[float, float] | None = None
        self.joules: float | None = 0.0

    def add(self, at_s: float, /) -> None:
        if self.joules is None or (watts := self._watts()) is None:
            self.joules = None
            return
        if self._last is not None:
            since, before = self._last
            self.joules += (at_s - since) * (watts + before) / 2
        self._last = (at_s, watts)


class Counter:
    """Adds up what a counter gains, in units of `unit_j` joules.

    One that starts again at 0 after `wraps_at` may do so once between two readings; any other that goes back was reset.
    """

    def __init__(
        self, source: str, count: Callable[[], int | None], unit_j: float, wraps_at: int | None = None
    ) -> None:
        self.source, self._count, self._unit_j, self._wraps_at = source, count, unit_j, wraps_at
        self._last: int | None = None
        self._gained: int | None = 0

    @property
    def joules(self) -> float | None:
        return None if self._gained is None else self._gained * self._unit_j

    def add(self, _at_s: float, /) -> None:
        if self._gained is None or (count := self._count()) is None:
            self._gained = None
            return
        gain = 0 if self._last is None else count - self._last
        if gain < 0 and self._wraps_at is not None:
            gain += self._wraps_at
        self._gained = None if gain < 0 else self._gained + gain
        self._last = count


def by_source(meters: Sequence[Joules]) -> dict[str, float | None]:
    """Return the sum of each source's joules, None where one of its parts is unknown."""
    totals: dict[str, float | None] = {}
    for meter in meters:
        total, joules = totals.get(meter.source, 0.0), meter.joules
        totals[meter.source] = None if total is None or joules is None else total + joules
    return totals
