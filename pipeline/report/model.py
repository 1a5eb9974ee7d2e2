"""The report as figures: what is shown, before any of it is written or drawn.

Rules: a pure function of statements; every check that was made or could not be is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.catalog.names import RunnerClass
from pipeline.catalog.params import Params
from pipeline.manifest.evidence import Evidence, Measurement
from pipeline.manifest.statement import Row
from pipeline.report import changes, channels, estimates
from pipeline.report.changes import Changes
from pipeline.report.channels import Standing
from pipeline.report.durations import Durations
from pipeline.report.estimates import Bound, Price
from pipeline.report.subject import Before, Part, Subject


@dataclass(frozen=True)
class Material:
    """What a report is made from.

    `params` is None outside a project; `durations` are of checks by variant and runner class; `notes` say what could
    not be had.
    """

    subject: Subject
    before: Before | None = None
    params: Params | None = None
    durations: Mapping[tuple[str, RunnerClass], Durations] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Checked:
    """One variant on one runner class: found, timed, as the gate compared it, and as it was in the previous release."""

    part: Part
    evidence: Evidence
    measurement: Measurement | None
    row: Row | None
    before: Row | None
    durations: Durations | None

    @property
    def variant(self) -> str:
        return self.part.variant.name

    @property
    def runner(self) -> RunnerClass:
        return self.evidence.runner


@dataclass(frozen=True)
class Report:
    """All that is shown; `changes` is None where there is nothing to compare with, which `notes` then explains."""

    subject: Subject
    checks: tuple[Checked, ...]
    channels: tuple[Standing, ...]
    bounds: tuple[Bound, ...]
    prices: tuple[Price, ...]
    changes: Changes | None
    notes: tuple[str, ...]


def make(material: Material) -> Report:
    """Return the report of what was found."""
    subject, params = material.subject, material.params
    rows = subject.verdict.rows
    return Report(
        subject=subject,
        checks=tuple(_checks(material)),
        channels=channels.standings(subject, params.channels if params else {}),
        bounds=estimates.bounds(subject.parts, params.rooflines if params else {}),
        prices=estimates.prices(subject.parts, rows, params.costs if params else {}),
        changes=changes.compare(rows, subject.files, material.before) if material.before else None,
        notes=tuple(material.notes),
    )


def _checks(material: Material) -> list[Checked]:
    now = {(r.variant, r.runner): r for r in material.subject.verdict.rows}
    then = {(r.variant, r.runner): r for r in material.before.rows} if material.before else {}
    found = []
    for part in material.subject.parts:
        for check in part.checks:
            key = part.variant.name, check.evidence.runner
            durations = material.durations.get(key)
            ours = durations and check.measurement and durations.are_of(check.measurement)
            found.append(
                Checked(
                    part=part,
                    evidence=check.evidence,
                    measurement=check.measurement,
                    row=now.get(key),
                    before=then.get(key),
                    durations=durations if ours else None,
                )
            )
    return found
