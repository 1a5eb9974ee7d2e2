"""One rank of a model split for tensor parallelism: its own shard, and the collectives that make it a whole.

Rules: a rank reads its own file alone; the split modules are replaced by ones that gather or reduce, by the plan in
`shards.json`; products are summed over ranks in f32; every rank comes to the same token, so none is sent around.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional

from pipeline.errors import StageError
from pipeline.model.layout import Layout, rank_file
from pipeline.model.plan import COLUMN, ROW, VOCABULARY, empty_model, part


@dataclass(frozen=True)
class Place:
    """A rank among `degree`, the device it computes on and the type it computes in."""

    rank: int
    degree: int
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def here(cls, *, full: bool = False) -> Place:
        """Return this process's place: the GPU of its rank in bfloat16, or in f32 where `full`; or the CPU in f32."""
        rank, degree = dist.get_rank(), dist.get_world_size()
        if torch.cuda.is_available():
            dtype = torch.float32 if full else torch.bfloat16
            return cls(rank, degree, torch.device("cuda", rank % torch.cuda.device_count()), dtype)
        return cls(rank, degree, torch.device("cpu"), torch.float32)


def enter(timeout: timedelta, *, full: bool = False) -> Place:
    """Join the other ranks, over NCCL on GPUs and gloo else, and return this process's place as `Place.here` does."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo", timeout=timeout)
    return Place.here(full=full)


class ColumnLinear(nn.Module):
    """Some of a linear layer's outputs; gathered from all ranks where what follows needs them whole."""

    def __init__(self, weight: Tensor, bias: Tensor | None, whole: int | None, place: Place) -> None:
        """Take a slice of the rows; `whole` is the number of all outputs where they are to be gathered."""
        super().__init__()
        self.weight, self.bias = _held(weight), bias
        self._whole, self._place = whole, place

    def forward(self, x: Tensor) -> Tensor:
        out = functional.linear(x, self.weight, self.bias)
        if self._whole is None or self._place.degree == 1:
            return out
        longest = part(self._whole, 0, self._place.degree)[1]
        mine = functional.pad(out, (0, longest - out.size(-1))).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self._place.degree)]
        dist.all_gather(parts, mine)
        return torch.cat(parts, -1)[..., : self._whole]


class RowLinear(nn.Module):
    """A linear layer over some of its inputs; the products of all ranks are summed, the bias is added once."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, cut: bool, place: Place) -> None:
        """Take a slice of the columns; `cut` says that the input arrives whole."""
        super().__init__()
        self.weight, self.bias = _held(weight), bias
        self._cut, self._place = cut, place

    def forward(self, x: Tensor) -> Tensor:
        if self._cut:
            start, end = part(x.size(-1), self._place.rank, self._place.degree)
            x = x[..., start:end]
        total = functional.linear(x, self.weight).float()
        dist.all_reduce(total)
        return (total if self.bias is None else total + self.bias).to(x.dtype)


class VocabularyEmbedding(nn.Module):
    """The embeddings of some tokens; the other ranks' are theirs to add."""

    def __init__(self, weight: Tensor, start: int) -> None:
        """Take the rows from token `start` on."""
        super().__init__()
        self.weight, self._start = _held(weight), start

    def forward(self, ids: Tensor) -> Tensor:
        local = ids - self._start
        foreign = (local < 0) | (local >= self.weight.size(0))
        found = functional.embedding(local.masked_fill(foreign, 0), self.weight).masked_fill(foreign[..., None], 0)
        dist.all_reduce(found)
        return found


def load(folder: Path, place: Place) -> Any:
    """Return this rank's part of the model as a transformers model that computes the whole.

    Raises:
        StageError: the shards are for another number of ranks, or not this architecture's.
    """
    layout = Layout.read(folder)
    if layout.degree != place.degree:
        raise StageError(
            f"{folder}: {layout.degree} shards for {place.degree} ranks", hint=f"start {layout.degree} ranks"
        )
    model = empty_model(folder).eval()
    with safe_open(folder / rank_file(place.rank, place.degree), framework="pt", device=str(place.device)) as f:
        held = {name: _typed(f.get_tensor(name), place) for name in f.keys()}  # noqa: SIM118 - not a mapping
    for name, owner in (model.all_tied_weights_keys or {}).items():
        held[name] = held[owner]
    for name in {name.rpartition(".")[0] for name in held}:
        _fill(model, name, held, layout, place)
    _restore_buffers(model, place)
    left = [name for name, value in model.named_parameters() if value.is_meta]
    if left:
        raise StageError(f"{folder}: no weight {left[0]} in the shard", hint="make the variant again")
    return model


def tell_engine(model: Any, place: Place) -> None:
    """Mark a loaded model as split, so that transformers' continuous batching keeps the ranks in step.

    Its cache then holds this rank's heads alone, and rank 0 hands requests to the others
    (transformers, `generation/continuous_batching/distributed.py`).
    """
    if place.degree > 1:
        model._device_mesh = init_device_mesh(place.device.type, (place.degree,))


def _held(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _typed(tensor: Tensor, place: Place) -> Tensor:
    # In f32 everything is widened; in bfloat16 the norms stay as wide as they are stored.
    return tensor.to(place.dtype) if tensor.ndim > 1 or place.dtype == torch.float32 else tensor


def _fill(model: Any, name: str, held: dict[str, Tensor], layout: Layout, place: Place) -> None:
    """Give a module its weights, or put one in its place that works on a slice."""
    module, style = model.get_submodule(name), layout.plan.style(name)
    own = {key.rpartition(".")[2]: value for key, value in held.items() if key.rpartition(".")[0] == name}
    if style not in COLUMN | ROW | VOCABULARY:
        for key, value in own.items():
            setattr(module, key, _held(value))
        if place.dtype != torch.float32 and own["weight"].ndim == 1:
            module.register_forward_hook(lambda _module, args, out: out.to(args[0].dtype))
        return
    assert style is not None
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, _split_module(module, style, own, place))


def _split_module(module: nn.Module, style: str, own: dict[str, Tensor], place: Place) -> nn.Module:
    weight, bias = own["weight"], own.get("bias")
    bias = None if bias is None else bias.to(weight.dtype)
    if style in VOCABULARY and type(module) is nn.Embedding:
        return VocabularyEmbedding(weight, part(module.num_embeddings, place.rank, place.degree)[0])
    if style in COLUMN and type(module) is nn.Linear:
        return ColumnLinear(weight, bias, module.out_features if "gather" in style else None, place)
    if style in ROW and type(module) is nn.Linear:
        return RowLinear(weight, bias, cut="split_input" in style, place=place)
    raise StageError(
        f"{type(module).__name__} cannot be split as {style!r} here", hint="choose a dense model such as Llama or Qwen3"
    )


def _restore_buffers(model: Any, place: Place) -> None:
    """Compute what no file holds, the rotary embedding's frequencies: built anew from the configuration."""
    for name, module in list(model.named_modules()):
        if not any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, type(module)(config=model.config).to(place.device))


@dataclass(frozen=True)
class Decoded:
    """Greedy tokens without the end token, and wall-clock nanoseconds to the first token and for each later one."""

    tokens: list[int]
    ttft_ns: int
    step_ns: list[int]


@torch.inference_mode()
def greedy(model: Any, ids: list[int], limit: int, ends: frozenset[int], place: Place) -> Decoded:
    """Return the greedy answer to one prompt, at most `limit` tokens; nothing is computed where that is 0."""
    if limit == 0:
        return Decoded([], 0, [])
    tokens: list[int] = []
    marks = [time.perf_counter_ns()]
    for token in _tokens(model, ids, place):
        marks.append(time.perf_counter_ns())
        if token in ends:
            break
        tokens.append(token)
        if len(tokens) == limit:
            break
    spent = [later - earlier for earlier, later in pairwise(marks)]
    return Decoded(tokens, spent[0], spent[1:])


def _tokens(model: Any, ids: list[int], place: Place) -> Iterator[int]:
    current, cache = torch.tensor([ids], device=place.device), None
    while True:
        output = model(input_ids=current, past_key_values=cache, use_cache=True, logits_to_keep=1)
        current, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
        yield int(current)


@torch.inference_mode()
def forced_logits(model: Any, ids: list[int], place: Place) -> Tensor:
    """Return f32 logits of shape (tokens, vocabulary) for a given sequence."""
    logits: Tensor = model(input_ids=torch.tensor([ids], device=place.device), use_cache=False).logits
    return logits[0].float().cpu()
