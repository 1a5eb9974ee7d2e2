"""What memory bounds decoding to: an estimate from above, never a speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.report import text
from pipeline.report.estimates import Bound
from pipeline.report.layout import Bar, Cell, Chart, Dot, Line, Section, Table, figures, words
from pipeline.report.model import Report


def section(report: Report) -> Section:
    """Return the bound of every variant for a board, with what the board itself did where it was asked."""
    found = report.bounds
    if not found:
        return Section(key="bound", title="Memory bound (estimate)")
    return Section(
        key="bound",
        title="Memory bound (estimate)",
        says=(
            "Not measured. To decode a token a board must read the weights once, so tokens a second are at most the "
            "bytes its memory can deliver in a second over the bytes a token needs. Real decoding stays below that: "
            "memory never delivers all of it, and arithmetic takes its time. Where the weights fit the processor's "
            "caches, memory is not what bounds it, and the figure says little.",
        ),
        items=tuple(dict.fromkeys(_sources(found))),
        tables=(_table(found),),
        charts=(_chart(found),),
    )


def _sources(found: Sequence[Bound]) -> Iterator[str]:
    for bound in found:
        rate = bound.roofline.bytes_per_second / 1e9
        yield f"{bound.roofline.board}: at most {text.number(rate)} GB a second. Source: {bound.roofline.source}"


def _table(found: Sequence[Bound]) -> Table:
    return Table(
        "Tokens a second: estimate from above, and measured where the board was asked",
        (
            *words("variant", "board"),
            *figures("bytes read per token", "at most (estimate)", "measured", "of the estimate"),
        ),
        tuple(_row(bound) for bound in found),
    )


def _row(bound: Bound) -> tuple[Cell, ...]:
    most, measured = bound.tokens_per_second, bound.measured
    return (
        Cell(bound.variant),
        Cell(bound.roofline.board),
        Cell(text.size(bound.bytes_per_token)),
        Cell(f"≤ {text.number(most)}"),
        Cell("not measured" if measured is None else text.number(measured)),
        Cell(text.NONE if measured is None else f"{measured / most:.1%}"),
    )


def _chart(found: Sequence[Bound]) -> Chart:
    most = [(bound.variant, bound.tokens_per_second) for bound in found]
    lines = []
    for bound in found:
        dots = [] if bound.measured is None else [Dot(bound.measured)]
        lines.append(Line(bound.variant, (Bar(bound.tokens_per_second, bound=True), *dots)))
    return Chart(
        key="bound",
        title="Tokens a second: at most",
        axis="tokens a second",
        legend="Outline: estimate from above, not measured. Dot: measured on the board.",
        summary=text.extremes("Estimate from above", most, text.number),
        lines=tuple(lines),
    )
