"""What the checks wrote, read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from pipeline.catalog.names import RunnerClass, Tier, Variant
from pipeline.errors import StageError
from pipeline.manifest.evidence import Certificate, Certificates, Evidence, Measurement, Missing
from pipeline.manifest.gate import MEASURED
from pipeline.manifest.search import Found
from pipeline.stages.project import Project


@dataclass(frozen=True)
class Finding:
    """One check: evidence, and the clock's figures where they count."""

    evidence: Evidence
    measurement: Measurement | None


@dataclass(frozen=True)
class Findings:
    """All checks that were made and those that could not be, in the order of variants and runner classes."""

    checks: Sequence[Finding]
    missing: Sequence[Missing]


def read(project: Project) -> Findings:
    """Return all that the checks wrote; raises StageError where a file is not what `check` writes."""
    found = [
        _read(project, variant, runner)
        for variant in project.variants()
        for runner in RunnerClass
        if project.evidence(variant, runner).exists()
    ]
    return Findings(
        checks=[f for f in found if isinstance(f, Finding)], missing=[f for f in found if isinstance(f, Missing)]
    )


def certificates(project: Project, tier: Tier) -> list[Certificate]:
    """Return the certificates of a tier's files, none where they were not compared."""
    path = project.certificates(tier)
    return Certificates.model_validate_json(path.read_bytes()).certificates if path.exists() else []


def search(project: Project, variant: Variant) -> Found | None:
    """Return how a variant's recipe was found, None where it was written out or nothing was built.

    Raises:
        StageError: the file is not what `search` writes.
    """
    path = project.search(variant)
    data = path.read_bytes().strip() if path.exists() else b"null"
    try:
        return None if data == b"null" else Found.model_validate_json(data)
    except ValidationError as e:
        raise StageError(f"{path}: no record of a search: {str(e).splitlines()[0]}", hint="dvc repro") from e


def read_one(project: Project, variant: Variant, runner: RunnerClass) -> Finding:
    """Return one check; raises StageError where it was not made."""
    if not project.evidence(variant, runner).exists():
        raise StageError(
            f"{variant} has not been checked on {runner}", hint=f"edge-release check {variant} --runner {runner}"
        )
    found = _read(project, variant, runner)
    if isinstance(found, Missing):
        raise StageError(f"{variant} could not be checked on {runner}: {found.missing}", hint="mend that, then check")
    return found


def _read(project: Project, variant: Variant, runner: RunnerClass) -> Finding | Missing:
    try:
        data = project.evidence(variant, runner).read_bytes()
        if set(json.loads(data)) == set(Missing.model_fields):
            return Missing.model_validate_json(data)
        measured = None
        if runner in MEASURED:
            measured = Measurement.model_validate_json(project.measurement(variant, runner).read_bytes())
        return Finding(Evidence.model_validate_json(data), measured)
    except (OSError, ValueError) as e:
        first = str(e).splitlines()[0]
        raise StageError(
            f"the check of {variant} on {runner} left no usable evidence: {first}", hint="dvc repro"
        ) from e
