"""What a page is made of, whatever writes it: sections of sentences, lists, tables and charts.

Rules: texts are plain, and whoever writes them escapes them; a tone is never the only sign of what it means; a chart
shows what a table beside it says in figures, and its labels are names of the catalog alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pipeline.catalog.names import RunnerClass


class Tone(StrEnum):
    """How a cell is set; the value is its class on the page."""

    PLAIN = ""
    GOOD = "good"
    BAD = "bad"
    WEAK = "weak"


@dataclass(frozen=True)
class Cell:
    """A cell of a table: a word or figure, what it needs said below in small print, `code` for digests."""

    text: str
    note: str = ""
    tone: Tone = Tone.PLAIN
    code: bool = False


@dataclass(frozen=True)
class Column:
    """A column's head; figures stand on the right."""

    name: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows)


@dataclass(frozen=True)
class Bar:
    """An amount from zero; `bound` where it is an estimate from above."""

    value: float
    bound: bool = False


@dataclass(frozen=True)
class Dot:
    """A single figure; `hollow` where it is the second of a row."""

    value: float
    hollow: bool = False


@dataclass(frozen=True)
class Tick:
    """The same figure of the previous release."""

    value: float


@dataclass(frozen=True)
class Box:
    """A distribution: 5th to 95th percentile, quartiles, median."""

    p5: float
    p25: float
    p50: float
    p75: float
    p95: float


@dataclass(frozen=True)
class Span:
    """Two figures and what lies between."""

    low: float
    high: float


Mark = Bar | Dot | Tick | Box | Span


@dataclass(frozen=True)
class Line:
    """One line of a chart: a variant, coloured as the runner class it was checked on, where it is of one."""

    label: str
    marks: tuple[Mark, ...]
    runner: RunnerClass | None = None


@dataclass(frozen=True)
class Chart:
    """A chart of lines over one axis; `summary` says in words what it shows."""

    key: str
    title: str
    axis: str
    legend: str
    summary: str
    lines: tuple[Line, ...]
    log: bool = False


@dataclass(frozen=True)
class Series:
    """Points of one kind in a cloud, (x, y); `joined` by a line, a `cross` instead of a ring."""

    points: tuple[tuple[float, ...], ...]
    joined: bool = False
    cross: bool = False


@dataclass(frozen=True)
class Cloud:
    """Points over two axes, the second logarithmic; `summary` says in words what it shows."""

    key: str
    title: str
    x_axis: str
    y_axis: str
    legend: str
    summary: str
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Grid:
    """A map of figures, shaded by their logarithm; None where there is none, `chosen` columns of each row framed."""

    key: str
    title: str
    legend: str
    summary: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    chosen: tuple[frozenset[int], ...]


@dataclass(frozen=True)
class Curve:
    """A line through points (x, y), in their order; where y is unknown it breaks off."""

    label: str
    points: tuple[tuple[float, float | None], ...]


@dataclass(frozen=True)
class Curves:
    """Up to three curves over two axes; `steps` where a value holds until the next; `summary` says what it shows."""

    key: str
    title: str
    x_axis: str
    y_axis: str
    legend: str
    summary: str
    curves: tuple[Curve, ...]
    log_x: bool = False
    log_y: bool = False
    steps: bool = False


Drawn = Chart | Cloud | Grid | Curves


@dataclass(frozen=True)
class Section:
    """A part of the page; `brief` ones belong in a pull request's comment too."""

    key: str
    title: str
    says: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Drawn, ...] = ()
    brief: bool = False


def words(*names: str) -> tuple[Column, ...]:
    """Return columns of words."""
    return tuple(Column(name, numeric=False) for name in names)


def figures(*names: str) -> tuple[Column, ...]:
    """Return columns of figures."""
    return tuple(Column(name) for name in names)


def ticked(lines: Sequence[Line]) -> str:
    """Return what a chart's legend says of the previous release, where it is in the chart."""
    return " Tick: the previous one." if any(isinstance(m, Tick) for line in lines for m in line.marks) else ""
