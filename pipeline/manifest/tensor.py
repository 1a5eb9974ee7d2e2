"""A tensor as the header of a model file lists it, in GGUF and in safetensors alike."""

from __future__ import annotations

from dataclasses import dataclass

MAX_TENSORS = 65_536
MAX_EXTENT = 2**63 - 1  # elements, of a dimension and of them all


@dataclass(frozen=True)
class Tensor:
    """A tensor's place; `shape` is in its format's own order, `offset` (bytes) counts from the file's start."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    size: int
