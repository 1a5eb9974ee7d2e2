"""What changed since the previous release."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.catalog.names import RunnerClass
from pipeline.report import text
from pipeline.report.changes import FIGURES, Change, Changes, Figure, FileChange, Kind
from pipeline.report.layout import Cell, Section, Table, Tone, figures, words
from pipeline.report.model import Report

# Times of a shared machine vary by less than this ratio without any reason in the release.
CLOCK_NOISE = 1.25


def section(report: Report) -> Section:
    """Return every figure that moved with what it was, and the files that came, went or changed."""
    found = report.changes
    if found is None:
        last = report.subject.verdict.previous_version
        nothing = f"Release {last} is not at hand." if last else "There is no earlier release to compare with."
        return Section(key="changes", title="Changes", says=(nothing,))
    return Section(
        key="changes",
        title=f"Changes since release {found.version}",
        says=tuple(_says(found)),
        items=(*found.checks, *found.apart),
        tables=tuple(_tables(found)),
        brief=True,
    )


def _says(found: Changes) -> Iterator[str]:
    yield (
        f"{text.counted(len(found.figures), 'figure')} moved, {found.equal:,} are equal. A dash stands for what is "
        "equal or not compared. Times vary from run to run: only a change by a quarter or more is called better or "
        "worse."
    )
    if found.files is None:
        yield "Files are not compared: both releases' manifests are needed for that."
    elif not found.files:
        yield f"All {text.counted(found.same_files, 'file')} are the same."
    else:
        yield f"{text.counted(len(found.files), 'file')} differ, {found.same_files:,} are the same."


def _tables(found: Changes) -> Iterator[Table]:
    for kind in Kind:
        moved = [change for change in found.figures if change.figure.kind is kind]
        if moved:
            yield _figures(kind, moved)
    if found.files:
        yield Table(
            "Files that differ",
            (*words("file", "what"), *figures("before", "now"), *words("sha256 before", "sha256 now")),
            tuple(_file(change) for change in found.files),
        )


def _figures(kind: Kind, moved: Sequence[Change]) -> Table:
    """Return what moved as one line for the variants of which all of it moved alike."""
    shown = [figure for figure in FIGURES if any(change.figure is figure for change in moved)]
    checks: dict[tuple[str, RunnerClass | None], dict[Figure, Cell]] = {}
    for change in moved:
        checks.setdefault((change.variant, change.runner), {})[change.figure] = _figure(change)
    alike: dict[tuple[RunnerClass | None, tuple[Cell, ...]], list[str]] = {}
    for (variant, runner), cells in checks.items():
        line = tuple(cells.get(figure, Cell(text.NONE)) for figure in shown)
        alike.setdefault((runner, line), []).append(variant)
    where = () if kind is Kind.FILES else ("runner",)
    return Table(
        kind.value,
        (*words("variants", *where), *figures(*(figure.name for figure in shown))),
        tuple(
            (Cell(", ".join(variants)), *(Cell(runner or text.NONE) for _ in where), *line)
            for (runner, line), variants in alike.items()
        ),
    )


def _figure(change: Change) -> Cell:
    write = change.figure.write
    moved = f"was {write(change.before)}: {text.change(change.before, change.now)}"
    low, high = sorted((change.before, change.now))
    if change.figure.kind is Kind.CLOCK and high < low * CLOCK_NOISE:
        return Cell(write(change.now), note=moved)
    tone = Tone.GOOD if change.better else Tone.BAD
    return Cell(write(change.now), note=f"{moved}, {'better' if change.better else 'worse'}", tone=tone)


def _file(change: FileChange) -> tuple[Cell, ...]:
    before, now = change.before, change.now
    return (
        Cell(change.name),
        Cell(change.kind),
        Cell(text.size(before.size) if before else text.NONE),
        Cell(text.size(now.size) if now else text.NONE),
        Cell(before.sha256[:16], code=True) if before else Cell(text.NONE),
        Cell(now.sha256[:16], code=True) if now else Cell(text.NONE),
    )
