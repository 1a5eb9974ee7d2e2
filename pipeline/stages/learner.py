"""One step of distillation, and the state that steps change.

Rules: a step's outcome depends on the state and its batch alone, nothing is random; large batches are cut into chunks
by the size of their logits, so memory stays bounded for any vocabulary. On a CPU all is f32, and no operator is used
that computes other bits on another maker's (`portable`); on a GPU products are bfloat16 and weights stay f32. The loss
is Hinton et al. 2015 (arXiv:1503.02531) at temperature 1, KL(teacher || student), mixed with cross-entropy; AdamW
(Loshchilov and Hutter 2019, arXiv:1711.05101), warmup, then linear decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, softmax
from torch.nn.utils import clip_grad_norm_

from pipeline.catalog.tiers import Distill
from pipeline.stages.batches import Batch
from pipeline.stages.ranks import Ranks

WARMUP = 0.1  # share of all steps
CLIP_NORM = 1.0
CHUNK_LOGITS = 1 << 26  # values of one chunk's logits, 256 MiB in f32


class Learner:
    """A student, its teacher and its optimizer."""

    def __init__(self, student: Any, teacher: Any, recipe: Distill, ranks: Ranks) -> None:
        """Take over the student; `ranks` are the processes that share each batch."""
        self.student, self.recipe, self.ranks = student, recipe, ranks
        self._teacher = teacher
        self._parameters = [p for p in student.parameters() if p.requires_grad]
        matrices = [p for p in self._parameters if p.ndim > 1]
        vectors = [p for p in self._parameters if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)

    def step(self, batch: Batch, step: int) -> float:
        """Learn from a batch, of which every rank takes its rows; returns the mean loss in nats a weight."""
        total = float(batch.weights[:, 1:].sum())
        mine = Batch(batch.ids[self.ranks.mine], batch.weights[self.ranks.mine]).to(self.student.device)
        loss = torch.zeros((), device=self.student.device)
        for chunk in self._chunks(mine):
            part = self._loss(chunk) / total
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self.ranks.add_up(parameter.grad)
        self.ranks.add_up(loss)
        clip_grad_norm_(self._parameters, CLIP_NORM)
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * self._pace(step)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss)

    def state(self) -> dict[str, Any]:
        """Return all that steps change, as torch stores it."""
        return {"student": self.student.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self.student.load_state_dict(state["student"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _pace(self, step: int) -> float:
        warmup = max(1, round(WARMUP * self.recipe.steps))
        if step < warmup:
            return (step + 1) / warmup
        return (self.recipe.steps - step) / max(1, self.recipe.steps - warmup)

    def _chunks(self, batch: Batch) -> list[Batch]:
        if not len(batch.ids):
            return []
        rows = max(1, CHUNK_LOGITS // (batch.ids.size(1) * self.student.config.vocab_size))
        parts = (slice(at, at + rows) for at in range(0, len(batch.ids), rows))
        return [Batch(batch.ids[part], batch.weights[part]) for part in parts]

    def _loss(self, batch: Batch) -> Tensor:
        """The sum over all weighted tokens of loss times weight."""
        share, gpu = self.recipe.kl_weight, batch.ids.is_cuda
        weights = batch.weights[:, 1:]
        counted = weights > 0
        with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=gpu):
            ours = self.student(input_ids=batch.ids, use_cache=False).logits[:, :-1][counted].float()
            losses = (1 - share) * cross_entropy(ours, batch.ids[:, 1:][counted], reduction="none")
            if share:
                with torch.no_grad():
                    theirs = self._teacher(input_ids=batch.ids, use_cache=False).logits[:, :-1][counted].float()
                parted = log_softmax(theirs, -1) - log_softmax(ours, -1)
                losses = losses + share * (softmax(theirs, -1) * parted).sum(-1)
        return torch.dot(losses, weights[counted])
