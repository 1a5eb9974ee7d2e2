"""Instructions per token: counted under emulation, the same at every repetition."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.manifest.evidence import Instructions
from pipeline.report import text
from pipeline.report.layout import Bar, Cell, Chart, Line, Mark, Section, Table, Tick, figures, ticked, words
from pipeline.report.model import Checked, Report


def section(report: Report) -> Section:
    """Return what was counted, for each format, with the bytes read beside it."""
    counted = [(checked, found) for checked in report.checks if (found := checked.evidence.instructions)]
    if not counted:
        return Section(key="instructions", title="Instructions per token")
    known = [(checked, amount) for checked, found in counted if (amount := found.per_token)]
    return Section(
        key="instructions",
        title="Instructions per token",
        says=(
            "Counted inside the decoder by an emulator, and so without noise: the gate compares them within one "
            "format. They say nothing of memory: the bytes that each token makes the processor read stand beside them.",
        ),
        tables=(_table(counted),),
        charts=(_chart(known),) if known else (),
        brief=True,
    )


def _table(counted: Sequence[tuple[Checked, Instructions]]) -> Table:
    return Table(
        "Instructions and bytes per token",
        (
            *words("variant", "format"),
            *figures("generated token", "before", "prompt token", "bytes read per token"),
            *words("emulator"),
        ),
        tuple(_row(checked, found) for checked, found in counted),
    )


def _row(checked: Checked, found: Instructions) -> tuple[Cell, ...]:
    prompt = found.prompt / found.prompt_tokens if found.prompt_tokens else None
    return (
        Cell(checked.variant),
        Cell(_format(checked)),
        Cell(text.millions(found.per_token)),
        Cell(text.millions(_before(checked))),
        Cell(text.millions(prompt)),
        Cell(text.size(checked.evidence.memory.bytes_per_token)),
        Cell(found.emulator, note=found.cpu),
    )


def _format(checked: Checked) -> str:
    return checked.row.format if checked.row and checked.row.format else checked.part.base or text.NONE


def _before(checked: Checked) -> float | None:
    same = checked.before and checked.row and checked.before.format == checked.row.format
    return checked.before.instructions_per_token if checked.before and same else None


def _chart(known: Sequence[tuple[Checked, float]]) -> Chart:
    lines = []
    for checked, amount in known:
        before = _before(checked)
        marks: list[Mark] = [Bar(amount / 1e6), *([Tick(before / 1e6)] if before else [])]
        lines.append(Line(checked.variant, tuple(marks), checked.runner))
    return Chart(
        key="instructions",
        title="Instructions per generated token",
        axis="millions",
        legend="Bar: this release." + ticked(lines),
        summary=text.extremes("Instructions per token", [(c.variant, a) for c, a in known], text.millions),
        lines=tuple(lines),
    )
