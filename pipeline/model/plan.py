"""How an architecture's tensors are shared out among ranks: the tensor-parallel plan that transformers states for it.

Rules: the plan is read from the model's class, never guessed from names; a style that is not known here is an error;
attention is split by whole heads and the feed-forward evenly, only the vocabulary may end on a shorter slice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

from pipeline.errors import StageError

# Styles of transformers/distributed/tensor_parallel.py, by what becomes of weight and bias.
COLUMN = frozenset({"colwise", "colwise_gather_output"})
ROW = frozenset({"rowwise", "rowwise_split_input"})
VOCABULARY = frozenset({"embedding_rowwise"})
WHOLE = frozenset({"replicate", "replicated_with_grad_allreduce"})
UNEVEN = frozenset({"colwise_gather_output", "embedding_rowwise"})
MAX_DEGREE = 64


@dataclass(frozen=True)
class Plan:
    """The styles of an architecture's modules, by name with `*` for every number."""

    styles: Mapping[str, str]

    def style(self, module: str) -> str | None:
        """Return the style of the module of that name, or None where every rank holds all of it."""
        return self.styles.get(re.sub(r"\b\d+\b", "*", module))

    def split(self, tensor: str) -> int | None:
        """Return the dimension along which a tensor is split, or None where every rank holds all of it."""
        module, _, parameter = tensor.rpartition(".")
        style = self.style(module)
        if style in COLUMN or style in VOCABULARY:
            return 0
        return 1 if style in ROW and parameter == "weight" else None


@dataclass(frozen=True)
class Skeleton:
    """A model without its weights: shape by tensor, the tensors that are another's, and the plan."""

    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    plan: Plan
    heads: int
    kv_heads: int


def part(length: int, rank: int, degree: int) -> tuple[int, int]:
    """Return start and end of a rank's slice; all are equally long, but the last ones may be shorter."""
    size = -(-length // degree)
    return min(rank * size, length), min((rank + 1) * size, length)


def empty_model(folder: Path) -> Any:
    """Return the folder's model as transformers builds it, on torch's meta device: all shapes and no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, OSError, TypeError) as e:
        raise StageError(
            f"{folder}: transformers knows no such causal language model: {' '.join(str(e).split())[:200]}",
            hint="choose an architecture that transformers has",
        ) from e


def skeleton(folder: Path) -> Skeleton:
    """Return shapes and plan of the model in `folder`; raises StageError where it has no plan that is known here."""
    model = empty_model(folder)
    styles = dict(model.tp_plan or {})
    name = type(model).__name__
    if not styles:
        raise StageError(f"{name} has no tensor-parallel plan", hint="set shard.degree to 1 or choose another model")
    for module, style in styles.items():
        if style not in COLUMN | ROW | VOCABULARY | WHOLE:
            raise StageError(
                f"{name}: {module} is split as {style!r}, which is not supported",
                hint="choose a dense model such as Llama, Qwen2, Qwen3 or Mistral",
            )
    heads = int(model.config.num_attention_heads)
    kv_heads = int(getattr(model.config, "num_key_value_heads", None) or heads)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return Skeleton(shapes, dict(model.all_tied_weights_keys or {}), Plan(styles), heads, kv_heads)


def check_degree(model: Skeleton, degree: int) -> None:
    """Raise StageError where `degree` ranks cannot share the model; the hint says which degrees can."""
    common = gcd(*_counts(model))
    if common % degree == 0:
        return
    fitting = [str(d) for d in range(1, MAX_DEGREE + 1) if common % d == 0]
    raise StageError(
        f"{model.kv_heads} key-value heads, {model.heads} heads and the feed-forward do not divide by {degree} ranks",
        hint=f"set shard.degree to {', '.join(fitting)}",
    )


def _counts(model: Skeleton) -> list[int]:
    """All counts that a degree must divide."""
    counts = [model.heads, model.kv_heads] if "colwise" in model.plan.styles.values() else []
    for tensor, shape in model.shapes.items():
        split = model.plan.split(tensor)
        if split is not None and model.plan.style(tensor.rpartition(".")[0]) not in UNEVEN:
            counts.append(shape[split])
    return counts
