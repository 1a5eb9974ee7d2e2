"""The large tier: one safetensors file for every rank of tensor parallelism, in mixed precision.

Rules: a rank reads its own file and no other; what is split and how is the architecture's own plan (`tensor_plan`);
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
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.catalog.names import Target, Tier, Variant
from pipeline.catalog.tiers import Shard
from pipeline.errors import StageError
from pipeline.manifest.encoding import canonical
from pipeline.manifest.statement import SHARDS
from pipeline.ports import files
from pipeline.stages import model_folder
from pipeline.stages.project import Project
from pipeline.stages.tensor_file import Spec, TensorFile, order
from pipeline.stages.tensor_plan import Plan, Skeleton, check_degree, part, skeleton

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
LONG_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
PIECE_BYTES = 32 << 20


@dataclass(frozen=True)
class Layout:
    """What `shards.json` says: degree, types as the catalog names them, the plan, and every tensor's split."""

    degree: int
    matrices: str
    norms: str
    plan: Plan
    splits: Mapping[str, int | None]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def read(cls, folder: Path) -> Layout:
        """Return the layout of a folder of shards; raises StageError where it is none."""
        found = model_folder.read_json(folder / SHARDS)
        try:
            tensors = found["tensors"]
            return cls(
                int(found["degree"]),
                found["matrices"],
                found["norms"],
                Plan(found["plan"]),
                {name: tensors[name]["split"] for name in tensors},
                {name: tuple(tensors[name]["shape"]) for name in tensors},
            )
        except (KeyError, TypeError, ValueError) as e:
            raise StageError(f"{folder / SHARDS}: not a layout of shards: {e}", hint="make the variant again") from e

    def encode(self) -> bytes:
        """Return the canonical bytes of `shards.json`."""
        tensors = {name: {"shape": list(self.shapes[name]), "split": self.splits[name]} for name in self.shapes}
        head = {"degree": self.degree, "matrices": self.matrices, "norms": self.norms}
        return canonical({**head, "plan": dict(self.plan.styles), "tensors": tensors}) + b"\n"

    def spec(self, name: str, rank: int) -> Spec:
        """Return type and shape of a rank's slice of a tensor."""
        shape, split = list(self.shapes[name]), self.splits[name]
        if split is not None:
            start, end = part(shape[split], rank, self.degree)
            shape[split] = end - start
        return Spec(DTYPES[self.matrices if len(shape) > 1 else self.norms], tuple(shape))


def rank_file(rank: int, degree: int) -> str:
    """Return the name of a rank's file."""
    return f"model-rank-{rank:05d}-of-{degree:05d}.safetensors"


def shard(project: Project) -> list[Path]:
    """Split the large tier's model once, into the folder of each target's variant, and return those folders.

    Raises:
        StageError: the architecture has no plan, the degree does not fit, weights are missing, or the disk is full.
    """
    recipe = project.tier(Tier.LARGE).shard
    assert recipe is not None, "the catalog gives the large tier a shard"
    first, *others = (project.variant(Variant(Tier.LARGE, target)) for target in Target)
    split(project.model(Tier.LARGE), first, recipe)
    for other in others:
        with files.new_folder(other) as folder:
            for made in sorted(first.iterdir()):
                files.put(made, folder / made.name)
    return [first, *others]


def split(model: Path, target: Path, recipe: Shard) -> Path:
    """Split the model in folder `model` into `target`; raises as `shard` does."""
    held = model_folder.weights(model)
    layout = _layout(skeleton(model), held, recipe)
    try:
        with files.new_folder(target) as folder:
            _write_ranks(layout, held, folder)
            model_folder.copy_tokenizer(model, folder)
            config = model_folder.read_json(model / model_folder.CONFIG)
            config["dtype"] = LONG_DTYPES[recipe.matrices]
            config.pop("torch_dtype", None)
            text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
            (folder / model_folder.CONFIG).write_text(text + "\n", encoding="utf-8")
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
