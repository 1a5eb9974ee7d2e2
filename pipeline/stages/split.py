"""A model split for tensor parallelism: one safetensors file for every rank, in mixed precision.

Rules: a rank reads its own file and no other; what is split and how is the architecture's own plan (`model.plan`);
matrices and vectors (norms, biases) have one type each; weights are streamed in pieces, so memory stays bounded however
large the model is; the same input gives the same bytes.

model-rank-00000-of-00002.safetensors   a rank's slices of the split tensors and all of the others
shards.json                             degree, types, the plan, and each tensor's whole shape and split dimension
config.json and the tokenizer's files   as in the model, but for `dtype`
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.catalog.tiers import Shard
from pipeline.errors import StageError
from pipeline.manifest.statement import SHARDS
from pipeline.model import hf
from pipeline.model.layout import DTYPES, LONG_DTYPES, Layout, rank_file
from pipeline.model.plan import Skeleton, check_degree, part, skeleton
from pipeline.model.tensor_file import TensorFile, order
from pipeline.ports import files

if TYPE_CHECKING:
    from torch import Tensor

PIECE_BYTES = 32 << 20


def split(model: Path, target: Path, recipe: Shard) -> Path:
    """Split the model in folder `model` into `target`, and return that.

    Raises:
        StageError: the architecture has no plan, the degree does not fit, weights are missing, or the disk is full.
    """
    held = hf.weights(model)
    layout = _layout(skeleton(model), held, recipe)
    try:
        with files.new_folder(target) as folder:
            _write_ranks(layout, held, folder)
            hf.copy_tokenizer(model, folder)
            config = hf.read_json(model / hf.CONFIG)
            config["dtype"] = LONG_DTYPES[recipe.matrices]
            config.pop("torch_dtype", None)
            text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
            (folder / hf.CONFIG).write_text(text + "\n", encoding="utf-8")
            (folder / SHARDS).write_bytes(layout.encode())
            for licence in sorted(model.glob("LICENSE*")):
                shutil.copyfile(licence, folder / licence.name)
    except OSError as e:
        raise StageError(f"cannot write {target}: {e.strerror}", hint="free space or choose another folder") from e
    return target


def _layout(model: Skeleton, held: Mapping[str, Path], recipe: Shard) -> Layout:
    check_degree(model, recipe.degree)
    needed = {name: shape for name, shape in model.shapes.items() if name not in model.tied}
    missing = sorted(set(needed) - set(held))
    if missing:
        raise StageError(f"no weight {missing[0]} (of {len(missing)} missing)", hint="fetch the model again")
    unknown = sorted(set(held) - set(model.shapes) - {name for name in held if name.endswith("rotary_emb.inv_freq")})
    if unknown:
        raise StageError(f"weight {unknown[0]} is no part of the architecture", hint="choose an unquantized model")
    splits = {name: model.plan.split(name) for name in needed}
    return Layout(recipe.degree, recipe.matrices, recipe.norms, model.plan, splits, needed)


def _write_ranks(layout: Layout, held: Mapping[str, Path], folder: Path) -> None:
    from safetensors import safe_open

    specs = [{name: layout.spec(name, rank) for name in layout.shapes} for rank in range(layout.degree)]
    with ExitStack() as stack:
        sources = {path: stack.enter_context(safe_open(path, framework="pt")) for path in set(held.values())}
        outs = [
            stack.enter_context(TensorFile(folder / rank_file(rank, layout.degree), specs[rank]))
            for rank in range(layout.degree)
        ]
        for name in order(specs[0]):
            source = sources[held[name]].get_slice(name)
            _check(name, source, layout)
            for rank, out in enumerate(outs):
                out.write(_pieces(source, layout, name, rank))


def _check(name: str, source: Any, layout: Layout) -> None:
    if tuple(source.get_shape()) != layout.shapes[name]:
        raise StageError(
            f"{name} has shape {source.get_shape()}, config.json makes it {list(layout.shapes[name])}",
            hint="fetch the model again",
        )
    if source.get_dtype() not in DTYPES.values():
        raise StageError(f"{name} has type {source.get_dtype()}", hint="choose a model in F32, BF16 or F16")


def _pieces(source: Any, layout: Layout, name: str, rank: int) -> Iterator[Tensor]:
    """A rank's slice of a tensor in pieces of whole rows, in the type it will have."""
    import torch

    dtype = getattr(torch, LONG_DTYPES[layout.matrices if len(layout.shapes[name]) > 1 else layout.norms])
    shape, cut = layout.shapes[name], layout.splits[name]
    first, last = part(shape[0], rank, layout.degree) if cut == 0 else (0, shape[0])
    step = max(1, PIECE_BYTES // (4 * max(1, prod(shape[1:]))))
    for start in range(first, last, step):
        rows = slice(start, min(start + step, last))
        columns = slice(*part(shape[1], rank, layout.degree)) if cut == 1 else slice(None)
        yield (source[rows] if len(shape) == 1 else source[rows, columns]).to(dtype)
