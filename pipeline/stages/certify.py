"""Stage `certify`: does a file decode alike on all targets?

Rules: for each distinct file of a tier, golden prompts are decoded by every target's own program, natively or emulated;
tokens must equal the reference target's, or differ first where its two best logits nearly tie; the logits over prompts
and expected answers must lie within a mean KL of the reference's. The worst position is shown and bounds nothing:
kernels round activations differently, and where that meets a rounding boundary one position alone moves by thousandths
of a nat. Where an emulator is missing, so is that part of the certificate, and it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from pipeline.catalog import params
from pipeline.catalog.names import Target, Tier, Variant, host_target
from pipeline.manifest.evidence import Agreement, Certificate, Certificates, Difference
from pipeline.ports import files, qemu
from pipeline.stages import gguf_run, golden
from pipeline.stages.gguf_run import Asked, Launcher
from pipeline.stages.golden import GoldenRun
from pipeline.stages.project import MODEL, Project
from pipeline.stages.quality import rounded
from pipeline.toolchain.runtime import RUNNER

REFERENCE = Target.X86_64


def certify(project: Project, tier: Tier) -> Certificates:
    """Write and return the certificates of a tier.

    Raises:
        StageError: a variant or the reference is missing.
        ToolError: a decoding process failed.
    """
    kin = chain.from_iterable(project.built(Variant(tier, target)) for target in Target)
    models = {files.sha256_file(m): m for m in (project.variant(variant) / MODEL for variant in kin)}
    bounds, folder = project.params.certificate, project.reference(tier)
    places = golden.some_of_each(project.golden(), bounds.per_family)
    requests = golden.read_requests(folder / golden.REQUESTS_FILE)
    with TemporaryDirectory(dir=project.build, prefix=".certify.") as scratch:
        asked = Path(scratch) / golden.REQUESTS_FILE
        asked.write_bytes(requests.at(places).encode())
        made = [_certificate(project, digest, model, asked, Path(scratch)) for digest, model in sorted(models.items())]
    found = Certificates(certificates=made)
    files.write(project.certificates(tier), found.encode() + b"\n")
    return found


def agreement(
    target: Target, emulator: str | None, reference: GoldenRun, other: GoldenRun, bounds: params.Certificate
) -> Agreement:
    """Return how a target's run compares with the reference's; `other` holds the KL against the reference's logits."""
    differences = [
        difference
        for ours, theirs in zip(reference.answers, other.answers, strict=True)
        if (difference := _first_difference(ours.id, ours.tokens, theirs.tokens, ours.margins)) is not None
    ]
    kls = [kl for answer in other.answers for kl in answer.kl]
    mean_kl = rounded(max(0.0, fmean(kls)))
    near_ties = all(difference.margin <= bounds.margin_max for difference in differences)
    return Agreement(
        target=target,
        emulator=emulator,
        mean_kl=mean_kl,
        max_kl=rounded(max(0.0, *kls)),
        differences=differences,
        holds=near_ties and mean_kl <= bounds.mean_kl_max,
    )


def _first_difference(
    prompt: str, ours: Sequence[int], theirs: Sequence[int], margins: Sequence[float]
) -> Difference | None:
    if list(ours) == list(theirs):
        return None
    position = golden.common_prefix(ours, theirs)
    # At a last token the reference may have no margin left: it stopped for want of room, which is no tie.
    margin = margins[position] if position < len(margins) else float("inf")
    return Difference(id=prompt, position=position, margin=rounded(min(margin, 1e9)))


@dataclass(frozen=True)
class _File:
    """A model file and what its targets are asked."""

    project: Project
    model: Path
    asked: Path
    out: Path

    def decode(self, target: Target, reference: Path | None = None) -> GoldenRun | None:
        """Return a target's run, None where its emulator is missing; without a reference its logits are kept."""
        before: tuple[str, ...] = ()
        if target is not host_target():
            emulator = qemu.find(target)
            if emulator is None:
                return None
            before = emulator.argv()
        launcher = Launcher(self.project.runtime(target) / RUNNER, before)
        asked = Asked(self.asked, reference=reference)
        settings = self.project.params.check
        return gguf_run.launch(
            launcher, self.model, asked, self.out / target, settings=settings, logits=reference is None
        )


def _certificate(project: Project, digest: str, model: Path, asked: Path, scratch: Path) -> Certificate:
    bounds, file = project.params.certificate, _File(project, model, asked, scratch / digest)
    file.out.mkdir()
    reference, logits = file.decode(REFERENCE), file.out / REFERENCE / golden.LOGITS_FILE
    others = [target for target in Target if target is not REFERENCE]
    runs: dict[Target, GoldenRun | None] = dict.fromkeys(others)
    if reference:
        with ThreadPoolExecutor() as pool:  # an emulator leaves the other cores idle
            runs = dict(zip(others, pool.map(partial(file.decode, reference=logits), others), strict=True))
    return Certificate(
        model_sha256=digest,
        reference=REFERENCE,
        prompts=[request.id for request in golden.read_requests(asked).requests],
        margin_max=bounds.margin_max,
        mean_kl_max=bounds.mean_kl_max,
        targets=[
            agreement(target, _emulator(target), reference, run, bounds)
            for target, run in runs.items()
            if reference and run
        ],
        missing={
            target: f"{qemu.PROGRAMS[target]} is not installed"
            for target, run in {REFERENCE: reference, **runs}.items()
            if run is None
        },
    )


def _emulator(target: Target) -> str | None:
    if target is host_target():
        return None
    found = qemu.find(target)
    return found.name if found else None
