"""Check the large tier's shards: all ranks together against one process, on GPUs over NVLink or on this host's CPU.

Rules: the reference is the unsplit model in full precision, through the very code the ranks run, as a single shard;
ranks and one process must give the same tokens. The runner class `nvlink` is several whole GPUs, each two joined by
NVLink; other GPUs, and ranks on the CPU over gloo where there are none, stand in for it, and the evidence says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from pipeline.catalog.names import RunnerClass, Variant
from pipeline.errors import StageError
from pipeline.manifest.evidence import Missing
from pipeline.ports import nvml
from pipeline.ports.energy import Meter
from pipeline.ports.nvml import Gpu
from pipeline.stages import shards_run
from pipeline.stages.checked import PASSES, Checked
from pipeline.stages.golden import GoldenRun
from pipeline.stages.project import Project
from pipeline.stages.quality import quality


def run(project: Project, variant: Variant, runner: RunnerClass, scratch: Path) -> Checked | Missing:
    """Return what the shards answered; raises StageError, ToolError as `check.check` does."""
    folder, model, prompts = project.variant(variant), project.model(variant.tier), project.golden()
    threads, recipe = project.params.check.threads, project.tier(variant.tier).shard
    assert recipe is not None, "the catalog gives the large tier a shard"
    asked = shards_run.requests(folder, prompts)
    gpus = nvml.gpus() if runner is RunnerClass.NVLINK else ()
    ranks, one, whole = scratch / "ranks.npy", scratch / "one.npy", scratch / "full.npy"
    with Meter(gpus=[gpu.uuid for gpu in gpus[: recipe.degree]]) as meter:
        # Energy is measured on GPUs alone, where nothing but the answers may be decoded meanwhile.
        found = shards_run.launch(folder, asked, threads=threads, times=PASSES, logits=None if gpus else ranks)
    if gpus:
        shards_run.launch(folder, asked.without_answers(), threads=threads, logits=ranks)
    alone = shards_run.whole(model, scratch / "alone", matrices=recipe.matrices, norms=recipe.norms)
    one_process = shards_run.launch(alone, asked, threads=threads, logits=one)
    if (prompt := first_difference(found, one_process)) is not None:
        raise StageError(
            f"{variant}: {recipe.degree} ranks and one process answer {prompt} differently",
            hint="shard with matrices: f32 in models/large.yaml, or mend the architecture's plan",
        )
    full = shards_run.whole(model, scratch / "full", matrices="f32", norms="f32")
    # A CPU computes in f32 either way, and the model may be stored in no more than the shards' precision.
    if found.engine["device"] != "cuda" and shards_run.same_values(alone, full):
        whole = one
    else:
        shards_run.launch(full, asked.without_answers(), threads=threads, logits=whole, full=True)
    compared = shards_run.compared(found, asked, ranks, whole)
    # Where a variable of the environment chooses among the GPUs, it may be any of them.
    used = gpus if os.environ.get("CUDA_VISIBLE_DEVICES") else gpus[: recipe.degree]
    return Checked(
        prompts, compared, quality(prompts, asked.requests, compared), meter.result if gpus else None,
        stand_in=stood_in(found.engine, used, nvml.topology()) if runner is RunnerClass.NVLINK else None,
        facts=nvml.facts() if gpus else {},
    )  # fmt: skip


def stood_in(engine: Mapping[str, str], used: Sequence[Gpu], paths: Sequence[Sequence[str]]) -> str | None:
    """Return what decoded in place of GPUs joined by NVLink, None where those did.

    Args:
        engine: the run's own words: device, ranks and backend.
        used: the GPUs the ranks were on.
        paths: between all GPUs of the machine, as `Session.topology` gives them.
    """
    ranks = int(engine["ranks"])
    if engine["device"] != "cuda":
        return f"{engine['backend']} on {ranks} CPU ranks"
    if len(used) < ranks:
        return f"{ranks} ranks on GPUs of which the driver shows {len(used)}"
    if any(gpu.mig for gpu in used):
        return "MIG partition"
    if ranks == 1:
        return "1 GPU without NVLink"
    met = {paths[one.index][other.index] for one, other in combinations(used, 2)}
    others = sorted(path for path in met if not path.startswith("NV"))
    return f"PCIe between GPUs ({', '.join(others)})" if others else None


def first_difference(one: GoldenRun, other: GoldenRun) -> str | None:
    """Return the id of the first prompt that two runs answered with different tokens, None where there is none."""
    pairs = zip(one.answers, other.answers, strict=True)
    return next((a.id for a, b in pairs if a.tokens != b.tokens), None)
