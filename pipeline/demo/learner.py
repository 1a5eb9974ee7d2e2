"""One training step of the demo teacher, and the state that steps change.

Rules: a step's outcome depends on the state and its batch alone; nothing is random. Matrices between layers
are Muon's, embeddings, output and norms are AdamW's (as the Muon authors advise).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaForCausalLM

from pipeline.demo.batches import Chunk
from pipeline.demo.initial import is_prepared
from pipeline.demo.model import blank
from pipeline.demo.muon import Muon
from pipeline.demo.recipe import Recipe

GENTLE = 0.05  # share of Muon's rate for prepared matrices: its updates are full-size however small a gradient is


def weighted_loss(model: LlamaForCausalLM, chunk: Chunk) -> Tensor:
    """The sum over all tokens of cross-entropy in nats times weight; a scalar."""
    logits = model(input_ids=chunk.ids, use_cache=False).logits
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), chunk.ids[:, 1:].flatten(), reduction="none")
    return torch.dot(losses, chunk.weights[:, 1:].flatten())


class Learner:
    """A model with its two optimizers."""

    def __init__(self, recipe: Recipe, model: Any = None) -> None:
        """Start from the recipe's blank model, of which parts are prepared, or from another."""
        self.recipe = recipe
        self.model = blank(recipe) if model is None else model
        named = list(self.model.named_parameters())
        matrices = [(name, p) for name, p in named if p.ndim == 2 and ".layers." in name]
        rates = [recipe.muon_lr * (GENTLE if model is None and is_prepared(name) else 1.0) for name, _ in matrices]
        self._muon = Muon([p for _, p in matrices], rates)
        others = [p for name, p in named if p.ndim != 2 or ".layers." not in name]
        self._adamw = torch.optim.AdamW(others, lr=recipe.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, chunks: Sequence[Chunk], pace: float) -> float:
        """Learn one batch at `pace` times the learning rates; returns the mean loss, nats a weight."""
        total = torch.stack([chunk.weights.sum() for chunk in chunks]).sum()
        loss = sum(self._backward(chunk, total) for chunk in chunks)
        clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self._muon.step(pace)
        for group in self._adamw.param_groups:
            group["lr"] = self.recipe.adamw_lr * pace
        self._adamw.step()
        self.model.zero_grad(set_to_none=True)
        return loss

    def _backward(self, chunk: Chunk, total: Tensor) -> float:
        loss = weighted_loss(self.model, chunk) / total
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """All that steps change, as torch stores it."""
        return {
            "model": self.model.state_dict(),
            "muon": list(self._muon.buffers),
            "adamw": self._adamw.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self.model.load_state_dict(state["model"])
        self._adamw.load_state_dict(state["adamw"])
        for buffer, saved in zip(self._muon.buffers, state["muon"], strict=True):
            buffer.copy_(saved)
