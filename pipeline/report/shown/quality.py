"""Quality: answers that are right, and how far the quantized distribution lies from the unquantized tier's."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.manifest.evidence import Family, Interval
from pipeline.report import text
from pipeline.report.layout import Cell, Chart, Dot, Line, Section, Span, Table, figures, words
from pipeline.report.model import Checked, Report

TUNED = (
    "A variant that is tuned to a prompt family (VARIANT+FAMILY) is judged by that family's prompts alone: the tables "
    "by family show it beside the variant for all prompts."
)


def section(report: Report) -> Section:
    """Return quality over all prompts and for each family of them."""
    if not report.checks:
        return Section(key="quality", title="Quality")
    return Section(
        key="quality",
        title="Quality",
        says=(
            "Exact match is the share of golden prompts that were answered as expected, as a mean over families. KL "
            "(nats) and the perplexity ratio compare with the unquantized tier; 0 and 1 would be no loss at all. Below "
            "a figure: where 95 of 100 values lie that other prompts of the same kind would have given. An emulator is "
            "slow and is asked fewer prompts.",
            *([TUNED] if any(part.variant.family for part in report.subject.parts) else []),
        ),
        tables=(
            _overall(report),
            _families(report, "Exact match by family", lambda f: text.share(f.exact_match)),
            _families(report, "Mean KL by family (nats)", lambda f: text.number(f.mean_kl)),
        ),
        charts=(_kl(report),),
        brief=True,
    )


def _overall(report: Report) -> Table:
    return Table(
        "Quality over all prompts",
        (
            *words("variant", "runner"),
            *figures("prompts", "exact match", "mean KL", "on answers", "p99 KL", "perplexity ratio"),
        ),
        tuple(_row(checked) for checked in report.checks),
    )


def _row(checked: Checked) -> tuple[Cell, ...]:
    found = checked.evidence.quality
    prompts = sum(family.prompts for family in found.families.values())
    return (
        Cell(checked.variant),
        Cell(checked.runner),
        Cell(f"{prompts:,}"),
        Cell(text.share(found.exact_match), note=_between(found.exact_match_interval, text.share)),
        Cell(text.number(found.mean_kl), note=_between(found.mean_kl_interval, text.number)),
        Cell(text.number(found.answer_kl)),
        Cell(text.number(found.p99_kl)),
        Cell(text.ratio(found.perplexity_ratio)),
    )


def _between(found: Interval | None, write: Callable[[float], str]) -> str:
    return f"{write(found.low)} to {write(found.high)}" if found else ""


def _families(report: Report, caption: str, write: Callable[[Family], str]) -> Table:
    names = sorted({name for checked in report.checks for name in checked.evidence.quality.families})
    return Table(
        caption,
        (*words("variant", "runner"), *figures(*names)),
        tuple(
            (Cell(checked.variant), Cell(checked.runner), *(_family(checked, name, write) for name in names))
            for checked in report.checks
        ),
    )


def _family(checked: Checked, name: str, write: Callable[[Family], str]) -> Cell:
    found = checked.evidence.quality.families.get(name)
    return Cell(write(found) if found else text.NONE)


def _kl(report: Report) -> Chart:
    found = [(checked, checked.evidence.quality) for checked in report.checks]
    return Chart(
        key="kl",
        title="KL from the unquantized tier",
        axis="nats, logarithmic",
        legend="Dot: mean over all positions. Ring: 99th percentile.",
        summary=text.extremes("Mean KL", [(f"{c.variant} on {c.runner}", q.mean_kl) for c, q in found], text.number),
        lines=tuple(
            Line(c.variant, (Span(q.mean_kl, q.p99_kl), Dot(q.mean_kl), Dot(q.p99_kl, hollow=True)), c.runner)
            for c, q in found
        ),
        log=True,
    )
