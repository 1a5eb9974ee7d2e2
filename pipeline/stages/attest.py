"""Sign what a check found, with the identity of the machine or job that made it; and judge what others signed.

Rules: evidence of a board counts only as that board signed it, by a key that params.yaml pins for its runner class;
what this job made itself it signs itself; a signature over other evidence than lies here is none. Signing is outside
the DVC graph: it needs an identity.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import chain

from pipeline.catalog.names import BOARDS, RunnerClass, Variant
from pipeline.errors import Refusal, StageError, TrustError
from pipeline.manifest import attestation, statement
from pipeline.manifest.dsse import Opener
from pipeline.manifest.statement import Attestation, Manifest
from pipeline.ports import files, trust
from pipeline.ports.keys import Signer
from pipeline.stages import findings
from pipeline.stages.findings import Finding
from pipeline.stages.project import Project


def attest(project: Project, variants: Sequence[Variant], runner: RunnerClass, signer: Signer) -> list[Variant]:
    """Sign the evidence of each variant and its kin on a runner class, and return them all.

    Raises:
        StageError: one of them was not checked there.
    """
    signed = list(chain.from_iterable(map(project.built, variants)))
    for variant in signed:
        found = findings.read_one(project, variant, runner)
        files.write(project.attestation(variant, runner), signer(attestation.build(found.evidence, found.measurement)))
    return signed


def objections(project: Project, checks: Iterable[Finding]) -> list[str]:
    """Return why evidence of boards does not count, one line each."""
    found = []
    for check in checks:
        if _from_board(check):
            try:
                _open_board(project, check)
            except (TrustError, StageError) as e:
                found.append(f"{check.evidence.variant} on {check.evidence.runner}: {e.message}")
    return found


def embed(project: Project, manifest: Manifest, signer: Signer, opener: Opener) -> Manifest:
    """Return the manifest with every check's attestation, made where this job made the check and none is there yet.

    Raises:
        StageError, TrustError: a board's evidence is not signed by a pinned key.
    """
    checks = {(c.evidence.variant, c.evidence.runner): c for c in findings.read(project).checks}
    variants = []
    for entry in manifest.predicate.variants:
        own = [checks[entry.name, evidence.runner] for evidence in entry.evidence]
        bundles = [Attestation(runner=c.evidence.runner, bundle=_bundle(project, c, signer, opener)) for c in own]
        variants.append(entry.model_copy(update={"attestations": bundles}))
    return statement.build(manifest.predicate.model_copy(update={"variants": variants}))


def bare(manifest: Manifest) -> Manifest:
    """Return a manifest without its attestations: as it was built."""
    variants = [entry.model_copy(update={"attestations": []}) for entry in manifest.predicate.variants]
    return statement.build(manifest.predicate.model_copy(update={"variants": variants}))


def _from_board(check: Finding) -> bool:
    return check.evidence.runner in BOARDS and check.evidence.stand_in is None


def _bundle(project: Project, check: Finding, signer: Signer, opener: Opener) -> dict[str, object]:
    if _from_board(check):
        return _decoded(_open_board(project, check))
    evidence, path = check.evidence, project.attestation(Variant.parse(check.evidence.variant), check.evidence.runner)
    try:
        kept = path.read_bytes()
        attestation.check_covers(opener(kept).payload, evidence, check.measurement)
    except (OSError, TrustError):  # not signed yet, or of an earlier run
        kept = signer(attestation.build(evidence, check.measurement))
        files.write(path, kept)
    return _decoded(kept)


def _open_board(project: Project, check: Finding) -> bytes:
    """Return the bundle a board signed; raises StageError, TrustError where it does not count."""
    runner, variant = check.evidence.runner, Variant.parse(check.evidence.variant)
    pinned = project.params.runners.get(runner)
    if pinned is None or not pinned.public_keys:
        raise StageError(
            f"no key is pinned for runner class {runner}", hint=f"edge-release attest --init, on the {runner} machine"
        )
    path = project.attestation(variant, runner)
    if not path.exists():
        raise TrustError(
            Refusal.UNSIGNED, "its evidence is not signed by the machine that made it",
            hint=f"edge-release attest {variant} --runner {runner}, on that machine",
        )  # fmt: skip
    bundle = path.read_bytes()
    opened = trust.keys_opener(pinned.public_keys)(bundle)
    attestation.check_covers(opened.payload, check.evidence, check.measurement)
    return bundle


def _decoded(bundle: bytes) -> dict[str, object]:
    found: dict[str, object] = json.loads(bundle)
    return found
