"""Stage `check`: prove one variant on its golden prompts.

Rules: the released files are what is checked; two runs in processes and contexts of their own must give identical token
ids; quality is against the expected answers and the unquantized tier; wall-clock figures are kept apart from what
repeats.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.catalog.names import GGUF_TIERS, RunnerClass, Variant
from pipeline.errors import StageError
from pipeline.manifest.evidence import Answer, Evidence, File, Measurement
from pipeline.ports import files
from pipeline.stages import describe, gguf_run, latency, shards_run
from pipeline.stages.golden import Decoded, GoldenRun
from pipeline.stages.project import MODEL, Project
from pipeline.stages.quality import quality


@dataclass(frozen=True)
class Runs:
    """Two runs of the variant, and the unquantized tier's logits over the same tokens."""

    first: Decoded
    second: Decoded
    reference: Decoded


def check(project: Project, variant: Variant, runner: RunnerClass) -> Evidence:
    """Write evidence, measurements and pytest-benchmark's JSON of one variant; return the evidence.

    Raises:
        StageError: two runs gave different tokens, ranks and one process disagree, or a prompt does not fit.
        ToolError: a decoding process failed.
    """
    prompts = project.golden()
    with _scratch(project) as scratch:
        runs = (_gguf_runs if variant.tier in GGUF_TIERS else _shard_runs)(project, variant, scratch)
        found = quality(prompts, runs.first, runs.reference)
    run = runs.first.run
    evidence = Evidence(
        variant=variant.name,
        runner=runner,
        files=_files(project.variant(variant)),
        golden_sha256=files.sha256_file(project.golden_file),
        engine=run.engine,
        deterministic=_tokens(run) == _tokens(runs.second.run),
        answers=[
            Answer(id=a.id, tokens=a.tokens, passed=p.accepts(a.text))
            for p, a in zip(prompts, run.answers, strict=True)
        ],
        quality=found,
        memory=describe.memory(project.variant(variant)),
    )
    measured = _measurement(project, variant, runner, runs.second.run)
    files.write(project.measurement(variant, runner), measured.encode() + b"\n")
    files.write(project.evidence(variant, runner), evidence.encode() + b"\n")
    return evidence


def first_difference(one: GoldenRun, other: GoldenRun) -> str | None:
    """Return the id of the first prompt that two runs answered with different tokens, None where there is none."""
    pairs = zip(one.answers, other.answers, strict=True)
    return next((a.id for a, b in pairs if a.tokens != b.tokens), None)


def _tokens(run: GoldenRun) -> list[list[int]]:
    return [answer.tokens for answer in run.answers]


def _gguf_runs(project: Project, variant: Variant, scratch: Path) -> Runs:
    model, prompts, params = project.variant(variant) / MODEL, project.golden_file, project.params.check
    launch = partial(gguf_run.launch, prompts=prompts, context=params.context, threads=params.threads)
    return Runs(
        first=launch(model, out=scratch / "first", logits=True),
        second=launch(model, out=scratch / "second"),
        reference=launch(project.gguf(variant.tier), out=scratch / "reference", logits=True, answers=False),
    )


def _shard_runs(project: Project, variant: Variant, scratch: Path) -> Runs:
    prompts, threads = project.golden(), project.params.check.threads
    recipe, model = project.tier(variant.tier).shard, project.model(variant.tier)
    assert recipe is not None, "the catalog gives the large tier a shard"
    first, second = shards_run.launch(
        project.variant(variant), prompts, scratch / "ranks", threads=threads, logits=True, times=2
    )
    alone = shards_run.whole(model, scratch / "alone", matrices=recipe.matrices, norms=recipe.norms)
    (one_process,) = shards_run.launch(alone, prompts, scratch / "one", threads=threads, logits=True)
    if (prompt := first_difference(first.run, one_process.run)) is not None:
        raise StageError(
            f"{variant}: {recipe.degree} ranks and one process answer {prompt} differently",
            hint="shard with matrices: f32 in models/large.yaml, or mend the architecture's plan",
        )
    full = shards_run.whole(model, scratch / "full", matrices="f32", norms="f32")
    if shards_run.same_values(alone, full):  # the model is stored in no more than the shards' precision
        return Runs(first, second, one_process)
    return Runs(first, second, *shards_run.launch(full, prompts, scratch / "full-run", threads=threads, logits=True))


def _measurement(project: Project, variant: Variant, runner: RunnerClass, run: GoldenRun) -> Measurement:
    figures = latency.benchmark(
        {
            "time_to_first_token": [a.ttft_ns for a in run.answers],
            "time_per_output_token": [ns for a in run.answers for ns in a.step_ns],
            "inference": [a.ttft_ns + sum(a.step_ns) for a in run.answers],
        },
        project.benchmark(variant, runner),
    )
    return Measurement(
        variant=variant.name,
        runner=runner,
        ttft_ms=figures["time_to_first_token"],
        per_token_ms=figures["time_per_output_token"],
        inference_ms=figures["inference"],
        peak_rss_bytes=run.peak_rss_bytes,
        machine={"cpu": _cpu(), "machine": platform.machine(), "system": platform.system()},
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, platform.processor() or "unknown")


def _files(folder: Path) -> list[File]:
    return [
        File(name=p.relative_to(folder).as_posix(), size=p.stat().st_size, sha256=files.sha256_file(p))
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    ]


@contextmanager
def _scratch(project: Project) -> Iterator[Path]:
    project.build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=project.build, prefix=".check.") as folder:
        yield Path(folder)
