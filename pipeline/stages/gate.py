"""Stage `gate`: the pure decision of `manifest.gate` over what the checks wrote.

Rules: the verdict is written only when it is yes, so that a failed gate stops `dvc repro` and nothing later sees it.
"""

from __future__ import annotations

from itertools import chain

from pipeline.catalog.names import GGUF_TIERS, Variant
from pipeline.errors import GateError
from pipeline.manifest.evidence import Evidence
from pipeline.manifest.gate import Check, Proof, gate
from pipeline.manifest.statement import Verdict
from pipeline.ports import files
from pipeline.stages import attest, findings
from pipeline.stages.previous import Previous
from pipeline.stages.project import Project


def decide(project: Project) -> Verdict:
    """Write and return the verdict.

    Raises:
        GateError: the verdict is no; `reasons` has one line for each reason.
    """
    verdict = judge(project, proof(project), Previous.model_validate_json(project.previous.read_bytes()))
    if verdict.passed:
        files.write(project.gate, verdict.encode() + b"\n")
    else:
        project.gate.unlink(missing_ok=True)
    return verdict


def judge(project: Project, found: Proof, previous: Previous) -> Verdict:
    """Return the verdict over what was found, and write nothing."""
    return gate(found, project.params, previous.verdict, previous.version)


def refuse(verdict: Verdict) -> None:
    """Raise GateError unless the verdict is yes."""
    if not verdict.passed:
        raise GateError(
            f"the gate refuses this release for {len(verdict.reasons)} reason(s)",
            hint="mend the model or the recipe, or change the thresholds in params.yaml and say why in the commit",
        )


def proof(project: Project) -> Proof:
    """Return all that was found about the variants.

    Raises:
        StageError: a file is not what its stage writes.
    """
    found = findings.read(project)
    checks = [Check(f.evidence, f.measurement, _format(project, f.evidence)) for f in found.checks]
    compared = {tier: findings.certificates(project, tier) for tier in GGUF_TIERS}
    objections = [f"{tier}: its files were not compared on the targets" for tier in GGUF_TIERS if not compared[tier]]
    return Proof(
        checks,
        [*chain.from_iterable(compared.values())],
        [*objections, *attest.objections(project, found.checks)],
        project.variants(),
    )


def _format(project: Project, evidence: Evidence) -> str | None:
    variant = Variant.parse(evidence.variant)
    return project.recipe(variant).base if variant.tier in GGUF_TIERS else None
