"""Stage `gate`: the pure decision of `manifest.gate` over what the checks wrote.

Rules: the verdict is written only when it is yes, so that a failed gate stops `dvc repro` and nothing later sees it.
"""

from __future__ import annotations

from pydantic import ValidationError

from pipeline.catalog.names import VARIANTS, RunnerClass, Variant
from pipeline.errors import GateError, StageError
from pipeline.manifest.evidence import Evidence, Measurement
from pipeline.manifest.gate import gate
from pipeline.manifest.statement import Verdict
from pipeline.ports import files
from pipeline.stages.previous import Previous
from pipeline.stages.project import Project


def read_checks(project: Project) -> list[tuple[Evidence, Measurement]]:
    """Return all evidence with its measurements, in the order of variants and runner classes.

    Raises:
        StageError: a file is not what `check` writes.
    """
    found = []
    for variant in VARIANTS:
        for runner in RunnerClass:
            if project.evidence(variant, runner).exists():
                found.append(_read_check(project, variant, runner))
    return found


def decide(project: Project) -> Verdict:
    """Write and return the verdict.

    Raises:
        GateError: the verdict is no; `reasons` has one line for each reason.
    """
    previous = Previous.model_validate_json(project.previous.read_bytes())
    verdict = gate(read_checks(project), project.params, previous.verdict, previous.version)
    if verdict.passed:
        files.write(project.gate, verdict.encode() + b"\n")
    else:
        project.gate.unlink(missing_ok=True)
    return verdict


def refuse(verdict: Verdict) -> None:
    """Raise GateError unless the verdict is yes."""
    if not verdict.passed:
        raise GateError(
            f"the gate refuses this release for {len(verdict.reasons)} reason(s)",
            hint="mend the model or the recipe, or change the thresholds in params.yaml and say why in the commit",
        )


def _read_check(project: Project, variant: Variant, runner: RunnerClass) -> tuple[Evidence, Measurement]:
    try:
        return (
            Evidence.model_validate_json(project.evidence(variant, runner).read_bytes()),
            Measurement.model_validate_json(project.measurement(variant, runner).read_bytes()),
        )
    except (OSError, ValidationError) as e:
        first = str(e).splitlines()[0]
        raise StageError(
            f"the check of {variant} on {runner} left no usable evidence: {first}", hint="dvc repro"
        ) from e
