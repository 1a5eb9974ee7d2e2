"""A GGUF tier's model: cut out of the teacher, then taught by it; or fetched where the tier names a repository.

Rules: the same inputs give the same bytes, in one go or resumed after a kill: one thread, deterministic kernels, no
clock in what is computed. The model is stored in the teacher's own type, since its variants are quantized from that.
Started by torchrun, ranks share each batch and rank 0 writes; the number of ranks is one of the inputs.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pipeline.catalog.names import Tier
from pipeline.catalog.tiers import Distill
from pipeline.manifest.encoding import Count, Record, canonical, sha256
from pipeline.model import hf
from pipeline.ports import files
from pipeline.ports.hub import Hub
from pipeline.stages import causal_lm
from pipeline.stages.project import Project
from pipeline.stages.teacher import at_hand, fetch_tier

if TYPE_CHECKING:
    import torch

    from pipeline.stages.batches import Row
    from pipeline.stages.checkpoint import Checkpoint
    from pipeline.stages.learner import Learner
    from pipeline.stages.ranks import Ranks

THREADS = 1


class Report(Record):
    """What a distillation made; `tokens` counts those learned from, padding apart; `exact_match` is 0 to 1 a family."""

    parameters: Count
    teacher_parameters: Count
    steps: Count
    tokens: Count
    ranks: Count
    weights: str
    exact_match: dict[str, float]
    teacher_exact_match: dict[str, float]

    @property
    def mean(self) -> float:
        """The student's exact match, every family alike."""
        return sum(self.exact_match.values()) / len(self.exact_match)


def distill(project: Project, tier: Tier, *, progress: bool = True, hub: Hub | None = None) -> Report | None:
    """Make `project.model(tier)` and its report; returns the report, None where the model was fetched.

    Args:
        progress: show a bar with loss and time left on standard error.
        hub: where a tier's own repository comes from; by default what the environment says.

    Raises:
        StageError: teacher and recipe do not fit, or the teacher's architecture is not known.
        ToolError: the hub cannot be reached or refuses.
    """
    source = project.tier(tier)
    if source.distill is None:
        fetch_tier(project, tier, hub)
        return None
    at_hand(project)
    from pipeline.stages.ranks import joined

    with _deterministic(), joined() as ranks:
        return _distill(project, tier, source.distill, ranks, f"distill {tier}" if progress else "")


def _distill(project: Project, tier: Tier, recipe: Distill, ranks: Ranks, progress: str) -> Report:
    from pipeline.model.chat import Chat
    from pipeline.stages.answers import exact_match
    from pipeline.stages.batches import encode
    from pipeline.stages.checkpoint import Checkpoint
    from pipeline.stages.learner import Learner
    from pipeline.stages.prune import prune

    chat, teacher = Chat(project.teacher), load(project.teacher, ranks.device)
    rows = encode(chat, project.distillation(), recipe.max_length)
    student = prune(teacher, recipe, encode(chat, project.calibration(), recipe.max_length)).to(ranks.device)
    checkpoint = Checkpoint(project.checkpoints(tier) / "checkpoint.pt", _inputs(project, recipe, ranks))
    tokens = learn(Learner(student, teacher, recipe, ranks), rows, chat.end, checkpoint, progress=progress)
    _round(student, teacher)
    report = Report(
        parameters=_count(student), teacher_parameters=_count(teacher), steps=recipe.steps, tokens=tokens,
        ranks=ranks.count, weights=ranks.agree(student),
        exact_match=exact_match(student, chat, project.golden()),
        teacher_exact_match=exact_match(teacher, chat, project.golden()),
    )  # fmt: skip
    if ranks.writes:
        _write(student.to(teacher.config.dtype), project.teacher, project.model(tier))
        files.write(project.distillation_report(tier), report.encode() + b"\n")
        checkpoint.remove()
    ranks.wait()
    return report


def load(folder: Path, device: torch.device) -> Any:
    """Return the model in `folder` for inference: as it is stored on a GPU, in f32 on a CPU.

    `config.dtype` keeps saying how it is stored. Raises StageError where transformers cannot load it.
    """
    gpu = device.type == "cuda"
    # The fused kernels' backward passes are not deterministic on GPUs.
    model = causal_lm.load(folder, dtype="auto", attn_implementation="eager" if gpu else "sdpa")
    stored = model.dtype
    model = model if gpu else model.float()
    model.config.dtype = stored
    return model.eval().requires_grad_(False).to(device)


def learn(learner: Learner, rows: Sequence[Row], pad: int, checkpoint: Checkpoint, *, progress: str) -> int:
    """Run the recipe's steps, from the checkpoint on where there is one; returns the tokens learned from.

    Args:
        progress: the bar's name; without one there is none.
    """
    from pipeline.stages.batches import Schedule, collate

    recipe = learner.recipe
    schedule = Schedule([len(row.ids) for row in rows], recipe.batch, recipe.seed)
    done, tokens = checkpoint.restore(learner)
    shown = progress and learner.ranks.writes
    with tqdm(total=recipe.steps, initial=done, desc=progress, unit="step", file=sys.stderr, disable=not shown) as bar:
        for step in range(done, recipe.steps):
            chosen = [rows[place] for place in schedule.step(step)]
            loss = learner.step(collate(chosen, recipe.prompt_weight, pad), step)
            tokens += sum(len(row.ids) for row in chosen)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            if learner.ranks.writes:
                checkpoint.keep(learner, step + 1, tokens)
    return tokens


def _inputs(project: Project, recipe: Distill, ranks: Ranks) -> str:
    """A digest of all that the student's bytes depend on."""
    import torch

    return sha256(
        canonical(
            {
                "teacher": files.tree_digest(project.teacher),
                "recipe": recipe.model_dump(mode="json"),
                "examples": files.sha256_file(project.root / project.params.data.distillation),
                "calibration": files.sha256_file(project.root / project.params.data.calibration),
                "torch": torch.__version__,
                "device": ranks.device.type,
                "ranks": ranks.count,
            }
        )
    )


def _round(student: Any, teacher: Any) -> None:
    """Give the student the values it will have as stored, so that what is measured is what is written."""
    import torch

    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(parameter.to(teacher.config.dtype))


def _write(student: Any, teacher: Path, target: Path) -> None:
    with files.new_folder(target) as folder:
        student.save_pretrained(folder)
        hf.copy_tokenizer(teacher, folder)
        for licence in sorted(teacher.glob("LICENSE*")):
            shutil.copyfile(licence, folder / licence.name)
        for path in folder.iterdir():
            path.chmod(0o644)


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _deterministic() -> Iterator[None]:
    """Let torch use a fixed number of threads and kernels that give the same bits, and put both back afterwards."""
    import torch

    from pipeline.stages.portable import Portable

    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    try:
        with Portable():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
