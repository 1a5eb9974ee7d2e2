"""Batches of examples for distillation.

Rules: a step's batch depends on the examples, the seed and the step alone, so training resumes at any step; order
comes from SHA-256, not from a library's generator; examples of like length share a batch, so little of it is padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pipeline.catalog.golden import Example
from pipeline.errors import StageError
from pipeline.model.chat import Chat

WINDOW = 8  # batches whose examples are sorted by length together


@dataclass(frozen=True)
class Row:
    """An example's tokens, of which the first `prompt_length` are the prompt."""

    ids: tuple[int, ...]
    prompt_length: int


@dataclass(frozen=True)
class Batch:
    """Token ids and their loss weights, both of shape (rows, tokens)."""

    ids: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(self.ids.to(device), self.weights.to(device))


def encode(chat: Chat, examples: Sequence[Example], max_length: int) -> tuple[Row, ...]:
    """Return the examples that fit `max_length` tokens; raises StageError where none does."""
    rows = []
    for example in examples:
        prompt, answer = chat.prompt(example.prompt), chat.answer(example.answer)
        if len(prompt) + len(answer) <= max_length:
            rows.append(Row((*prompt, *answer), len(prompt)))
    if not rows:
        raise StageError(f"no example fits {max_length} tokens", hint="raise distill.max_length")
    return tuple(rows)


def collate(rows: Sequence[Row], prompt_weight: float, pad: int) -> Batch:
    """Return rows padded on the right to one length; the first token and padding weigh nothing."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad)
    weights = torch.zeros(len(rows), length)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
        weights[place, 1 : row.prompt_length] = prompt_weight
        weights[place, max(1, row.prompt_length) : len(row.ids)] = 1.0
    return Batch(ids, weights)


class Schedule:
    """Which rows make up which step's batch."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        """Take the rows' lengths in tokens; fewer rows than a batch make one smaller batch an epoch."""
        self._lengths, self._batch, self._seed = tuple(lengths), min(batch, len(lengths)), seed
        self._epoch = lru_cache(maxsize=1)(self._make_epoch)

    def step(self, step: int) -> list[int]:
        """Return the indexes of a step's rows."""
        epoch, place = divmod(step, len(self._lengths) // self._batch)
        return self._epoch(epoch)[place]

    def _make_epoch(self, epoch: int) -> list[list[int]]:
        order = self._shuffled(list(range(len(self._lengths))), f"{epoch}/rows")
        size, found = self._batch * WINDOW, []
        for start in range(0, len(order), size):
            window = sorted(order[start : start + size], key=lambda row: self._lengths[row])
            found += [window[at : at + self._batch] for at in range(0, len(window), self._batch)]
        whole = [rows for rows in found if len(rows) == self._batch]
        places = self._shuffled(list(range(len(whole))), f"{epoch}/batches")
        return [whole[place] for place in places]

    def _shuffled(self, items: list[int], purpose: str) -> list[int]:
        def key(item: int) -> bytes:
            return hashlib.sha256(f"{self._seed}/{purpose}/{item}".encode()).digest()

        return sorted(items, key=key)
