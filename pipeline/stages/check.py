"""Stage `check`: prove variants on their golden prompts, on one runner class.

Rules: the released files are what is checked; a second pass in fresh contexts must give identical token ids; quality is
against the expected answers and the unquantized tier; wall-clock figures are kept apart from what repeats, and under
emulation there are none. Variants whose files are equal are decoded once. A machine that is not of the runner class is
refused; where a class can be stood in for, the evidence says by what. A variant is checked with its kin that are tuned
to prompt families, on all prompts; evidence of kin that are gone goes too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from pipeline.catalog.names import BOARDS, GGUF_TIERS, RunnerClass, Variant
from pipeline.errors import StageError
from pipeline.manifest.encoding import canonical
from pipeline.manifest.evidence import Answer, Evidence, File, Measurement, Missing
from pipeline.manifest.gate import MEASURED
from pipeline.ports import files, machine
from pipeline.stages import describe, latency
from pipeline.stages.checked import Checked
from pipeline.stages.project import Project


def check(
    project: Project, variants: Sequence[Variant], runner: RunnerClass, *, allow_throttled: bool = False
) -> list[Evidence | Missing]:
    """Write evidence, and where the clock counts measurements, of each variant and its kin; return the evidence.

    Args:
        allow_throttled: keep a run during which the machine was throttled, marked as such, instead of refusing it.

    Raises:
        StageError: this machine is not of the runner class, was throttled, ranks and one process disagree, or a prompt
            does not fit.
        ToolError: a decoding process failed.
    """
    _refuse_unsuitable(variants, runner)
    done: dict[bytes, Checked | Missing] = {}
    evidence: list[Evidence | Missing] = []
    for variant in chain.from_iterable(map(project.built, variants)):
        held = released(project.variant(variant))
        key = canonical([variant.tier, *(f.model_dump() for f in held)])
        if runner is RunnerClass.EMULATED or key not in done:
            done[key] = _run(project, variant, runner)
        found = done[key]
        if isinstance(found, Missing):
            files.write(project.evidence(variant, runner), found.encode() + b"\n")
            evidence.append(found)
        else:
            _refuse_throttled(found, variant, runner, allow=allow_throttled)
            evidence.append(_write(project, variant, runner, found, held))
    for variant in variants:
        _forget_others(project, variant.plain, runner)
    return evidence


def released(folder: Path) -> list[File]:
    """Return the files of a folder as a manifest lists them, sorted by name."""
    return [listed(p.relative_to(folder).as_posix(), p) for p in sorted(folder.rglob("*")) if p.is_file()]


def listed(name: str, path: Path) -> File:
    """Return a file as a manifest lists it."""
    return File(name=name, size=path.stat().st_size, sha256=files.sha256_file(path))


def _refuse_unsuitable(variants: Sequence[Variant], runner: RunnerClass) -> None:
    gguf = {RunnerClass.EMULATED, RunnerClass.PI5, RunnerClass.RISCV}
    for variant in variants:
        if (runner in gguf and variant.tier not in GGUF_TIERS) or (
            runner is RunnerClass.NVLINK and variant.tier in GGUF_TIERS
        ):
            raise StageError(
                f"{variant} is not for runner class {runner}",
                hint="GGUF tiers: host, emulated, pi5 or riscv; the large tier: host or nvlink",
            )


def _forget_others(project: Project, variant: Variant, runner: RunnerClass) -> None:
    names = {kin.name for kin in project.built(variant)}
    for path in (f(variant, runner) for f in (project.evidence, project.measurement, project.benchmark)):
        for found in path.parent.glob("*.json"):
            if found.stem not in names:
                found.unlink()


def _run(project: Project, variant: Variant, runner: RunnerClass) -> Checked | Missing:
    with _scratch(project) as scratch:
        if variant.tier in GGUF_TIERS:
            from pipeline.stages import check_gguf

            return check_gguf.run(project, variant, runner, scratch)
        from pipeline.stages import check_shards

        return check_shards.run(project, variant, runner, scratch)


def _refuse_throttled(found: Checked, variant: Variant, runner: RunnerClass, *, allow: bool) -> None:
    if found.metered is None or runner not in BOARDS or found.stand_in:
        return  # what a build host's clock says is no claim about a board
    if runner is RunnerClass.PI5 and not found.metered.throttling_sources:
        raise StageError(
            f"{variant}: nothing here can tell whether the board is throttled",
            hint="add this user to group video, so that it may ask vcgencmd (docs/runners.md)",
        )
    flags = found.metered.throttled
    if flags and not allow:
        raise StageError(
            f"{variant}: the machine was held back during the run: {', '.join(flags)}",
            hint="cool it and give it power (docs/runners.md), or keep the run marked with --allow-throttled",
        )


def _write(project: Project, variant: Variant, runner: RunnerClass, found: Checked, held: list[File]) -> Evidence:
    evidence = Evidence(
        variant=variant.name,
        runner=runner,
        files=held,
        golden_sha256=files.sha256_file(project.golden_file),
        engine=found.run.engine,
        deterministic=found.run.repeatable,
        answers=[
            Answer(id=a.id, tokens=a.tokens, passed=p.accepts(a.text))
            for p, a in zip(found.prompts, found.run.answers, strict=True)
        ],
        quality=found.quality,
        memory=describe.memory(project.variant(variant)),
        instructions=found.instructions,
        stand_in=found.stand_in,
    )
    if runner in MEASURED:
        files.write(
            project.measurement(variant, runner), _measurement(project, variant, runner, found).encode() + b"\n"
        )
    files.write(project.evidence(variant, runner), evidence.encode() + b"\n")
    return evidence


def _measurement(project: Project, variant: Variant, runner: RunnerClass, found: Checked) -> Measurement:
    answers, metered = found.run.answers, found.metered
    figures = latency.benchmark(
        {
            "time_to_first_token": [a.ttft_ns for a in answers],
            "time_per_output_token": [ns for a in answers for ns in a.step_ns],
            "inference": [a.ttft_ns + sum(a.step_ns) for a in answers],
        },
        project.benchmark(variant, runner),
    )
    return Measurement(
        variant=variant.name,
        runner=runner,
        ttft_ms=figures["time_to_first_token"],
        per_token_ms=figures["time_per_output_token"],
        inference_ms=figures["inference"],
        peak_rss_bytes=found.run.peak_rss_bytes,
        machine={**machine.facts(), **found.facts},
        joules_per_inference=found.joules_per_inference,
        temperature_c=metered.temperature_max_c if metered else None,
        throttled=list(metered.throttled) if metered else [],
    )


@contextmanager
def _scratch(project: Project) -> Iterator[Path]:
    project.build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=project.build, prefix=".check.") as folder:
        yield Path(folder)
