"""Training of the demo teacher, from a recipe to a Hugging Face folder.

Rules: the same recipe gives the same bytes on the same kind of CPU, in one go or resumed after a kill: one
thread, f32, deterministic kernels, no clock. Other CPUs may round differently; the released weights are the
ones in the repository.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from pipeline.demo.accuracy import FamilyScore, accuracy
from pipeline.demo.batches import batch
from pipeline.demo.checkpoint import Checkpoints
from pipeline.demo.corpus import FAMILIES, examples
from pipeline.demo.folder import Report, write_teacher
from pipeline.demo.learner import Learner
from pipeline.demo.recipe import RECIPE, Recipe
from pipeline.demo.tokenizer import build


@contextmanager
def one_deterministic_thread() -> Iterator[None]:
    """Let torch use one thread and deterministic kernels only, and put both back afterwards."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)


@one_deterministic_thread()
def learn(recipe: Recipe, checkpoints: Checkpoints | None = None, *, progress: bool = True) -> Learner:
    """Run the recipe's steps, from the checkpoint on where there is one.

    `progress` shows a bar with the loss on stderr. Raises StageError for a checkpoint that does not fit.
    """
    tokenizer, learner = build(), Learner(recipe)
    done = checkpoints.restore(learner) if checkpoints else 0
    with tqdm(total=recipe.steps, initial=done, unit="step", file=sys.stderr, disable=not progress) as bar:
        for step in range(done, recipe.steps):
            loss = learner.step(batch(tokenizer, recipe, step), recipe.pace(step))
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            if checkpoints and (step + 1) % recipe.checkpoint_every == 0:
                checkpoints.save(learner, step + 1)
    return learner


@one_deterministic_thread()
def score(learner: Learner, asked: int) -> tuple[FamilyScore, ...]:
    """Exact match on `asked` held-out prompts of every family."""
    held_out = (e for family in FAMILIES for e in examples("held-out", asked, family, held_out=True))
    return accuracy(learner.model, build(), held_out)


def train(
    recipe: Recipe, out: Path, *, checkpoint_dir: Path | None = None, progress: bool = True, asked: int = 400
) -> Report:
    """Train by the recipe and write the teacher's folder to `out`.

    `asked` is how many held-out prompts of each family the report rests on.
    Raises StageError for a checkpoint in `checkpoint_dir` that cannot be read or is another recipe's.
    """
    checkpoints = Checkpoints(checkpoint_dir, recipe) if checkpoint_dir else None
    learner = learn(recipe, checkpoints, progress=progress)
    learner.model.eval()
    return write_teacher(out, recipe, learner.model, score(learner, asked))


def train_demo(out: Path, recipe: Recipe = RECIPE, checkpoint_dir: Path | None = None) -> Report:
    """What `edge-release train-demo` does: `train` with the committed recipe and a progress bar."""
    return train(recipe, out, checkpoint_dir=checkpoint_dir)
