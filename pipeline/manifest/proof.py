"""Is a variant proven on a runner class, by someone trusted to say so?

Rules: the evidence must be signed by a pinned signer and passed on the class's own hardware at full speed; that it is
of the released files is a rule of every manifest; anything else is no proof, and what is required but not proven is
refused.
"""

from __future__ import annotations

from pipeline.catalog.names import GGUF_TIERS, RunnerClass, Target
from pipeline.errors import Refusal, TrustError
from pipeline.manifest import attestation
from pipeline.manifest.dsse import Opener
from pipeline.manifest.encoding import canonical
from pipeline.manifest.statement import Manifest, VariantEntry

_TARGETS = {
    RunnerClass.EMULATED: frozenset({Target.ARM64, Target.RISCV64}),
    RunnerClass.PI5: frozenset({Target.ARM64}),
    RunnerClass.RISCV: frozenset({Target.RISCV64}),
}


def provable(entry: VariantEntry, runner: RunnerClass) -> bool:
    """Return whether a runner class can say anything of a variant."""
    if runner is RunnerClass.NVLINK:
        return entry.tier not in GGUF_TIERS
    return runner is RunnerClass.HOST or (entry.tier in GGUF_TIERS and entry.target in _TARGETS[runner])


def require(manifest: Manifest, runner: RunnerClass, opener: Opener, variant: str | None = None) -> list[str]:
    """Return the variants that are proven: the one named, else all that the class can say anything of.

    Raises:
        TrustError: UNPROVEN, or the signature's refusals.
    """
    entries = [e for e in manifest.predicate.variants if (e.name == variant if variant else provable(e, runner))]
    if not entries:
        raise TrustError(
            Refusal.UNPROVEN, f"nothing in this release can be proven on {runner}", hint="require another runner class"
        )
    for entry in entries:
        _require(entry, runner, opener)
    return [entry.name for entry in entries]


def _require(entry: VariantEntry, runner: RunnerClass, opener: Opener) -> None:
    evidence = next((e for e in entry.evidence if e.runner is runner), None)
    signed = next((a for a in entry.attestations if a.runner is runner), None)
    if evidence is None or signed is None:
        why = next((m.missing for m in entry.missing if m.runner is runner), "there is no signed evidence")
        raise _unproven(entry, runner, why)
    measurement = next((m for m in entry.measurements if m.runner is runner), None)
    payload = opener(canonical(signed.bundle)).payload
    found = attestation.check_covers(payload, evidence, measurement)
    if found.result != attestation.PASSED:
        raise _unproven(entry, runner, f"its check {found.result.lower()}: {evidence.stand_in or 'see show'}")


def _unproven(entry: VariantEntry, runner: RunnerClass, why: str) -> TrustError:
    return TrustError(
        Refusal.UNPROVEN, f"{entry.name} is not proven on {runner}: {why}",
        hint="use a release whose variants were checked there, or do not require it",
    )  # fmt: skip
