"""What pruning and the teacher's logits are each worth for a tier: the same steps, data and shape, one thing changed.

    python -m tests.bench.ablation_distill [--tier tiny-edge] [--seeds 0 1] [--project FOLDER]

Prints a Markdown table of exact match on the golden prompts, the mean over seeds; docs/distillation.md holds the last.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.catalog.names import Tier
from pipeline.catalog.tiers import Distill
from pipeline.ports.torch_env import pin_cpu_kernels
from pipeline.stages.project import Project


@dataclass(frozen=True)
class Case:
    """One row: where the weights start and what the loss is."""

    name: str
    pruned: bool
    trained: bool = True
    kl: bool = True


CASES = (
    Case("from scratch, cross-entropy", pruned=False, kl=False),
    Case("from scratch, distilled", pruned=False),
    Case("pruned, not trained", pruned=True, trained=False),
    Case("pruned, cross-entropy", pruned=True, kl=False),
    Case("pruned, distilled", pruned=True),
)


class Bench:
    """A project's teacher and data, loaded once."""

    def __init__(self, project: Project) -> None:
        import torch

        from pipeline.model.chat import Chat
        from pipeline.stages.batches import encode
        from pipeline.stages.distill import load
        from pipeline.stages.ranks import Ranks

        torch.set_num_threads(1)
        self.ranks = Ranks(0, 1, torch.device("cpu"))
        self.chat, self.golden = Chat(project.teacher), project.golden()
        self.teacher = load(project.teacher, self.ranks.device)
        self.rows = encode(self.chat, project.distillation(), 512)
        self.calibration = encode(self.chat, project.calibration(), 512)

    def run(self, case: Case, recipe: Distill) -> tuple[dict[str, float], float]:
        """Return exact match by family and the CPU seconds of training."""
        from pipeline.stages.answers import exact_match
        from pipeline.stages.batches import Schedule, collate
        from pipeline.stages.learner import Learner
        from pipeline.stages.prune import blank, prune

        student = prune(self.teacher, recipe, self.calibration) if case.pruned else blank(self.teacher, recipe)
        learner = Learner(student, self.teacher, recipe, self.ranks)
        schedule = Schedule([len(row.ids) for row in self.rows], recipe.batch, recipe.seed)
        start = time.process_time()
        for step in range(recipe.steps if case.trained else 0):
            chosen = [self.rows[place] for place in schedule.step(step)]
            learner.step(collate(chosen, recipe.prompt_weight, self.chat.end), step)
        return exact_match(student, self.chat, self.golden), time.process_time() - start


def table(bench: Bench, recipe: Distill, seeds: list[int]) -> Iterator[str]:
    """Yield the table's lines as they are measured."""
    families: list[str] = []
    for case in CASES:
        found = [bench.run(case, _recipe(recipe, case, seed)) for seed in (seeds if case.trained else seeds[:1])]
        if not families:
            families = list(found[0][0])
            yield f"| start and loss | mean | over seeds | {' | '.join(families)} | CPU s |"
            yield f"|---|---|---|{'---|' * (len(families) + 1)}"
        means = [mean(scores.values()) for scores, _ in found]
        cells = [f"{mean(scores[family] for scores, _ in found):.3f}" for family in families]
        spread = f"{min(means):.3f} to {max(means):.3f}"
        yield f"| {case.name} | {mean(means):.3f} | {spread} | {' | '.join(cells)} | {mean(s for _, s in found):.0f} |"


def _recipe(recipe: Distill, case: Case, seed: int) -> Distill:
    return recipe.model_copy(update={"seed": seed, "kl_weight": recipe.kl_weight if case.kl else 0.0})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", type=Tier, default=Tier.TINY_EDGE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--project", type=Path, default=Path())
    arguments: Any = parser.parse_args()
    project = Project.load(arguments.project)
    recipe = project.tier(arguments.tier).distill
    assert recipe is not None, "this tier is not distilled"
    for line in table(Bench(project), recipe, arguments.seeds):
        print(line, flush=True)


if __name__ == "__main__":
    pin_cpu_kernels()
    main()
