"""What differs from the previous release: figures, recipes, checks and files.

Rules: figures are compared as the gate compares them: clock and cost on the same kind of machine alone, instructions
within one format alone, and no difference is made of what rounding alone does; what is not compared is said. A figure
of the files is the same on every runner class and compared once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from pipeline.catalog.names import VARIANTS, RunnerClass, parted
from pipeline.manifest.evidence import File
from pipeline.manifest.gate import KL_NOISE
from pipeline.manifest.statement import Row
from pipeline.report import text
from pipeline.report.subject import Before


class Kind(Enum):
    """What a figure tells of; where it was found matters for all but the files."""

    FILES = "Size"
    WORK = "Instructions"
    QUALITY = "Quality"
    CLOCK = "Time and cost"


@dataclass(frozen=True)
class Figure:
    """A figure of the gate's rows: its name and how it is written; a difference of at most `noise` is none."""

    kind: Kind
    name: str
    attribute: str
    write: Callable[[float | None], str]
    more_is_better: bool = False
    noise: float = 0.0

    def of(self, row: Row) -> float | None:
        found: float | None = getattr(row, self.attribute)
        return found


FIGURES = (
    Figure(Kind.FILES, "bytes", "bytes", text.whole),
    Figure(Kind.FILES, "bytes read per token", "bytes_per_token", text.whole),
    Figure(Kind.WORK, "instructions per token", "instructions_per_token", text.whole),
    Figure(Kind.QUALITY, "exact match", "exact_match", text.share, more_is_better=True),
    Figure(Kind.QUALITY, "mean KL", "mean_kl", text.number, noise=KL_NOISE),
    Figure(Kind.QUALITY, "p99 KL", "p99_kl", text.number, noise=KL_NOISE),
    Figure(Kind.QUALITY, "perplexity ratio", "perplexity_ratio", text.ratio, noise=1e-4),
    Figure(Kind.CLOCK, "first token p95", "ttft_p95_ms", text.milliseconds),
    Figure(Kind.CLOCK, "per token p50", "per_token_p50_ms", text.milliseconds),
    Figure(Kind.CLOCK, "per token p95", "per_token_p95_ms", text.milliseconds),
    Figure(Kind.CLOCK, "1,000 inferences", "cost_per_1k_usd", text.usd),
)


_VARIANTS = {variant.name: place for place, variant in enumerate(VARIANTS)}


@dataclass(frozen=True)
class Change:
    """A figure that moved; `runner` is None where it is of the files."""

    figure: Figure
    variant: str
    runner: RunnerClass | None
    before: float
    now: float

    @property
    def better(self) -> bool:
        return (self.now > self.before) == self.figure.more_is_better


@dataclass(frozen=True)
class FileChange:
    """A file that came, went, or has other bytes; `name` is `<folder>/<file>`."""

    name: str
    before: File | None
    now: File | None

    @property
    def kind(self) -> str:
        return "added" if self.before is None else "removed" if self.now is None else "changed"


@dataclass(frozen=True)
class Changes:
    """All that differs; `equal` counts figures that did not move, `apart` says what was not compared and why.

    `files` is None where either release's files are not known; `same_files` counts those with equal bytes.
    """

    version: int
    figures: tuple[Change, ...]
    equal: int
    apart: tuple[str, ...]
    checks: tuple[str, ...]
    files: tuple[FileChange, ...] | None
    same_files: int = 0


def compare(rows: Sequence[Row], files: Mapping[str, File] | None, last: Before) -> Changes:
    """Return what differs between a release's rows and files and the previous release's."""
    now, then = _by_check(rows), _by_check(last.rows)
    shared = [(now[key], then[key]) for key in sorted(now.keys() & then.keys(), key=_place)]
    moved, equal = _moved(shared)
    known = files is not None and last.files is not None
    here, there = files or {}, last.files or {}
    return Changes(
        version=last.version,
        figures=moved,
        equal=equal,
        apart=tuple(_apart(shared)),
        checks=tuple(_checks(now, then)),
        files=tuple(_file_changes(here, there)) if known else None,
        same_files=sum(1 for name, file in here.items() if there.get(name) == file),
    )


def _moved(shared: Sequence[tuple[Row, Row]]) -> tuple[tuple[Change, ...], int]:
    moved: dict[Change, None] = {}
    equal: set[tuple[Figure, str, RunnerClass | None]] = set()
    for figure in FIGURES:
        for row, old in shared:
            before, now = figure.of(old), figure.of(row)
            if before is None or now is None or not _comparable(figure, row, old):
                continue
            runner = None if figure.kind is Kind.FILES else row.runner
            if abs(now - before) <= figure.noise:
                equal.add((figure, row.variant, runner))
            else:
                moved[Change(figure, row.variant, runner, before, now)] = None
    return tuple(moved), len(equal)


def _by_check(rows: Sequence[Row]) -> dict[tuple[str, RunnerClass], Row]:
    return {(r.variant, r.runner): r for r in rows}


def _place(check: tuple[str, RunnerClass]) -> tuple[int, str, int]:
    variant, runner = check
    return _VARIANTS.get(parted(variant)[0], len(_VARIANTS)), variant, list(RunnerClass).index(runner)


def _comparable(figure: Figure, row: Row, old: Row) -> bool:
    if figure.kind is Kind.CLOCK:
        return row.machine == old.machine and row.stand_in == old.stand_in
    return figure.kind is not Kind.WORK or row.format == old.format


def _apart(shared: Sequence[tuple[Row, Row]]) -> Iterator[str]:
    for row, old in shared:
        where = f"{row.variant} on {row.runner}"
        clock = row.cost_per_1k_usd is not None or row.per_token_p50_ms is not None
        if clock and row.machine != old.machine:
            yield f"{where}: time and cost are not compared: measured on {row.machine}, before on {old.machine}"
        elif clock and row.stand_in != old.stand_in:
            yield f"{where}: time and cost are not compared: only one of the two ran on the class's own hardware"
        if row.instructions_per_token is not None and row.format != old.format:
            yield f"{where}: instructions are not compared: its format is {row.format}, before {old.format}"


def _checks(now: Mapping[tuple[str, RunnerClass], Row], then: Mapping[tuple[str, RunnerClass], Row]) -> Iterator[str]:
    for variant, runner in sorted(now.keys() - then.keys(), key=_place):
        yield f"{variant} is checked on {runner}, and was not before"
    for variant, runner in sorted(then.keys() - now.keys(), key=_place):
        yield f"{variant} is no longer checked on {runner}"


def _file_changes(now: Mapping[str, File], then: Mapping[str, File]) -> Iterator[FileChange]:
    for name in sorted(now.keys() | then.keys()):
        if now.get(name) != then.get(name):
            yield FileChange(name, then.get(name), now.get(name))
