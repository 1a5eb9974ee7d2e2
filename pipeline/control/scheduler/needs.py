"""What a verified release says its variants need of a node.

Rules: pure; only an `Accepted` release is read. On a board a variant needs signed evidence that passed there; elsewhere
evidence in the signed manifest: of the host on x86_64, of an emulator on the other instruction sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from pipeline.catalog.names import BOARDS, RunnerClass, Target
from pipeline.errors import TrustError
from pipeline.manifest import proof
from pipeline.manifest.dsse import Opener
from pipeline.manifest.rules import Accepted
from pipeline.manifest.statement import Manifest, VariantEntry


@dataclass(frozen=True)
class Needs:
    """One variant: `memory` the peak resident bytes measured, None where none were; `weights` bytes of all its files.

    `unproven` says of each runner class that can say anything of it why it is no proof, None where it is.
    """

    variant: str
    target: Target
    model: str | None
    gpus: int
    memory: int | None
    weights: int
    unproven: Mapping[RunnerClass, str | None]

    def asked_of(self, board: RunnerClass | None) -> RunnerClass:
        """Return the runner class whose evidence counts on a board, or on a machine that is none."""
        if board in self.unproven and board is not None:
            return board
        return RunnerClass.HOST if self.target is Target.X86_64 else RunnerClass.EMULATED


@dataclass(frozen=True)
class Release:
    """A release by what its variants need."""

    version: int
    digest: str
    expires: datetime
    variants: Mapping[str, Needs]


def read(accepted: Accepted, openers: Callable[[RunnerClass], Opener]) -> Release:
    """Return what an accepted release needs; `openers` verify each runner class's signed evidence."""
    manifest = accepted.manifest
    variants = {entry.name: _needs(manifest, entry, openers) for entry in manifest.predicate.variants}
    return Release(manifest.release.version, accepted.digest, manifest.expires, variants)


def _needs(manifest: Manifest, entry: VariantEntry, openers: Callable[[RunnerClass], Opener]) -> Needs:
    file = entry.model_file
    measured = [m.peak_rss_bytes for m in entry.measurements]
    return Needs(
        variant=entry.name,
        target=entry.target,
        model=file.sha256 if file else None,
        gpus=entry.model.tensor_parallel,
        memory=max(measured, default=None),
        weights=sum(f.size for f in entry.files),
        unproven={
            runner: _unproven(manifest, entry, runner, openers)
            for runner in RunnerClass
            if proof.provable(entry, runner)
        },
    )


def _unproven(
    manifest: Manifest, entry: VariantEntry, runner: RunnerClass, openers: Callable[[RunnerClass], Opener]
) -> str | None:
    if runner in BOARDS or any(a.runner is runner for a in entry.attestations):
        try:
            proof.require(manifest, runner, openers(runner), entry.name)
        except TrustError as e:
            return e.message
        return None
    found = next((e for e in entry.evidence if e.runner is runner), None)
    if found is None or found.stand_in or not found.deterministic:
        return f"{entry.name} is not proven on {runner}: there is no passing evidence"
    return None
