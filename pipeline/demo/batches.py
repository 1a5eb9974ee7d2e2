"""Batches of training examples.

Rules: a step's batch depends on the recipe's seed and the step alone, so training resumes at any step; a
batch is sorted by length and cut into chunks, so little of a chunk is padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pipeline.demo.corpus import Example, draw, drill
from pipeline.demo.draw import Rng
from pipeline.demo.recipe import Recipe
from pipeline.demo.tokenizer import BOS, PAD, encode

DRILL = "drill"
DRILL_TURNS = 4

Conversation = tuple[Example, ...]


@dataclass(frozen=True)
class Chunk:
    """Token ids and their loss weights, both of shape (examples, tokens)."""

    ids: Tensor
    weights: Tensor


def drawn(recipe: Recipe, step: int) -> list[Conversation]:
    """The conversations of one step: one turn for a family's example, several for a drill."""
    rng = Rng.of(f"{recipe.seed}/{step}")
    parts = (rng.pick(recipe.mix_at(step)) for _ in range(recipe.batch))
    return [drill(rng, DRILL_TURNS) if part == DRILL else (draw(rng, part),) for part in parts]


def tokens(tokenizer: Tokenizer, conversation: Conversation, prompt_weight: float) -> list[tuple[int, float]]:
    """Each token of a conversation with its loss weight; answers weigh 1, the first token nothing."""
    weighted = [(BOS, 0.0)]
    for example in conversation:
        prompt, answer = encode(tokenizer, example)
        weighted += [(token, prompt_weight) for token in prompt[1:]]
        weighted += [(token, 1.0) for token in answer]
    return weighted


def chunk(rows: list[list[tuple[int, float]]]) -> Chunk:
    """Rows padded on the right to one length; padding weighs nothing."""
    length = max(map(len, rows))
    padded = torch.tensor([row + [(PAD, 0.0)] * (length - len(row)) for row in rows], dtype=torch.float64)
    return Chunk(padded[..., 0].long(), padded[..., 1].float())


def batch(tokenizer: Tokenizer, recipe: Recipe, step: int) -> list[Chunk]:
    """One step's conversations in `recipe.chunks` chunks, shortest first."""
    rows = [tokens(tokenizer, conversation, recipe.prompt_weight) for conversation in drawn(recipe, step)]
    rows.sort(key=len)
    size = recipe.batch // recipe.chunks
    return [chunk(rows[start : start + size]) for start in range(0, recipe.batch, size)]
