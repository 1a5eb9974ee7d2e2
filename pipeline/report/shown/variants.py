"""The variants: what was made, how large it is, and on which runner classes each was checked."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.catalog.names import RunnerClass
from pipeline.manifest.statement import Row
from pipeline.report import text
from pipeline.report.layout import Bar, Cell, Chart, Line, Section, Table, Tick, Tone, figures, ticked, words
from pipeline.report.model import Report
from pipeline.report.subject import Part


def section(report: Report) -> Section:
    """Return the variants, their evidence, and the chart of their sizes."""
    return Section(
        key="variants",
        title="Variants",
        says=(
            "Evidence counts where the runner class's own hardware decoded at full speed. A stand-in shows that the "
            "files work and proves nothing about that hardware; what is missing could not be checked.",
        ),
        tables=(_table(report), _evidence(report)),
        charts=_charts(report),
        brief=True,
    )


def _table(report: Report) -> Table:
    return Table(
        "What was made",
        (
            *words("variant", "format", "recipe"),
            *figures("parameters", "size", "read per token"),
            *words("sha256 of the largest file"),
        ),
        tuple(_row(part) for part in report.subject.parts),
    )


def _row(part: Part) -> tuple[Cell, ...]:
    largest = max(part.files, key=lambda f: f.size, default=None)
    read = next((c.evidence.memory.bytes_per_token for c in part.checks), None)
    overrides = part.recipe.get("tensors")
    parallel = part.model.tensor_parallel if part.model else 1
    return (
        Cell(part.variant.name),
        Cell(part.format or text.NONE, note=f"{parallel} ranks" if parallel > 1 else ""),
        Cell(part.base or text.NONE, note=text.counted(len(overrides), "override") if overrides else ""),
        Cell(text.millions(part.model.parameters) if part.model else text.NONE),
        Cell(text.size(sum(f.size for f in part.files)) if part.files else text.NONE),
        Cell(text.size(read)),
        Cell(largest.sha256[:16], code=True) if largest else Cell(text.NONE),
    )


def _evidence(report: Report) -> Table:
    parts = report.subject.parts
    seen = {c.evidence.runner for p in parts for c in p.checks} | {m.runner for p in parts for m in p.missing}
    runners = [r for r in RunnerClass if r in seen]
    return Table(
        "Evidence by runner class",
        words("variant", *runners),
        tuple((Cell(part.variant.name), *(_proof(part, runner) for runner in runners)) for part in parts),
    )


def _proof(part: Part, runner: RunnerClass) -> Cell:
    check = next((c for c in part.checks if c.evidence.runner is runner), None)
    if check is None:
        why = next((m.missing for m in part.missing if m.runner is runner), None)
        return Cell(text.NONE) if why is None else Cell("missing", note=why, tone=Tone.WEAK)
    if not check.evidence.deterministic:
        return Cell("not repeatable", note="two runs gave different tokens", tone=Tone.BAD)
    if check.evidence.stand_in is not None:
        return Cell("stand-in", note=check.evidence.stand_in, tone=Tone.WEAK)
    if check.measurement and check.measurement.throttled:
        return Cell("throttled", note=", ".join(check.measurement.throttled), tone=Tone.WEAK)
    return Cell("checked", note="signed" if runner in part.signed else "", tone=Tone.GOOD)


def _charts(report: Report) -> tuple[Chart, ...]:
    on_disk = _sizes(report, "size", "Bytes on disk", lambda row: row.bytes)
    read = _sizes(report, "read", "Bytes read per decoded token", lambda row: row.bytes_per_token)
    return tuple(chart for chart in (on_disk, read) if chart)


def _sizes(report: Report, key: str, title: str, of: Callable[[Row], int | None]) -> Chart | None:
    firsts = {checked.variant: checked for checked in reversed(report.checks)}
    found = {name: of(checked.row) for name, checked in firsts.items() if checked.row}
    counts = {part.variant.name: found.get(part.variant.name) for part in report.subject.parts}
    known = [(name, count) for name, count in counts.items() if count]
    if not known:
        return None
    scale, unit = text.unit(max(count for _, count in known))
    lines = []
    for name, count in known:
        before = firsts[name].before
        last = of(before) if before else None
        lines.append(Line(name, (Bar(count / scale), *([Tick(last / scale)] if last else []))))
    return Chart(
        key=key,
        title=title,
        axis=unit,
        legend="Bar: this release." + ticked(lines),
        summary=text.extremes(title, known, text.size),
        lines=tuple(lines),
    )
