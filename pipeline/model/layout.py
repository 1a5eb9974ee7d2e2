"""How a folder of shards is laid out: one safetensors file for every rank, and `shards.json` about all of them.

Rules: what is split and how is said there once, by whoever split it; readers guess nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StageError
from pipeline.manifest.encoding import canonical
from pipeline.manifest.statement import SHARDS
from pipeline.model import hf
from pipeline.model.plan import Plan, part
from pipeline.model.tensor_file import Spec

DTYPES = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
LONG_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


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
        found = hf.read_json(folder / SHARDS)
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
        whole, split = self.whole(name), self.splits[name]
        if split is None:
            return whole
        shape = list(whole.shape)
        start, end = part(shape[split], rank, self.degree)
        shape[split] = end - start
        return Spec(whole.dtype, tuple(shape))

    def whole(self, name: str) -> Spec:
        """Return type and shape of a tensor, all ranks' slices together."""
        shape = self.shapes[name]
        return Spec(DTYPES[self.matrices if len(shape) > 1 else self.norms], shape)


def rank_file(rank: int, degree: int) -> str:
    """Return the name of a rank's file."""
    return f"model-rank-{rank:05d}-of-{degree:05d}.safetensors"
