"""The gate: its reasons, and the channels."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.report import text
from pipeline.report.channels import Standing
from pipeline.report.layout import Cell, Section, Table, Tone, words
from pipeline.report.model import Report
from pipeline.report.subject import State


def section(report: Report) -> Section:
    """Return why the gate decided as it did, and what each channel still lacks."""
    return Section(
        key="gate",
        title="Gate",
        says=tuple(_says(report)),
        items=tuple(report.subject.verdict.reasons),
        tables=(_channels(report),) if report.channels else (),
        brief=True,
    )


def _says(report: Report) -> Iterator[str]:
    verdict = report.subject.verdict
    if report.subject.state is State.EVIDENCE:
        yield "There is no manifest: what follows is the evidence as the checks left it."
    if verdict.passed:
        yield "The gate found nothing against it."
    else:
        yield f"The gate refuses it for {text.counted(len(verdict.reasons), 'reason')}:"


def _channels(report: Report) -> Table:
    return Table(
        "Channels",
        words("channel", "open to this release", "not proven yet"),
        tuple((Cell(s.channel), _open(s), _lacks(s, report)) for s in report.channels),
    )


def _open(standing: Standing) -> Cell:
    return Cell("yes", tone=Tone.GOOD) if standing.open else Cell("no", tone=Tone.BAD)


def _lacks(standing: Standing, report: Report) -> Cell:
    if standing.open:
        return Cell("nothing")
    lacks = [f"on {' or '.join(lack.classes)}: {', '.join(lack.variants)}" for lack in standing.lacks]
    refused = [] if report.subject.verdict.passed else ["the gate's refusal comes first"]
    return Cell("; ".join([*lacks, *refused]) or "see the reasons")
