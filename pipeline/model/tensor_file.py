"""A safetensors file written piece by piece: the header first, then every tensor's bytes in the header's order.

Rules: the bytes depend on names, types, shapes and values alone; wide types come first, so each tensor is aligned; no
more than a piece is held in memory (format: https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from types import TracebackType
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

WIDTHS = {"F32": 4, "BF16": 2, "F16": 2}


@dataclass(frozen=True)
class Spec:
    """A tensor's type, as safetensors names it, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return WIDTHS[self.dtype] * prod(self.shape)


def order(specs: Mapping[str, Spec]) -> list[str]:
    """Return the names in the order in which their bytes lie: wide types first, then by name."""
    return sorted(specs, key=lambda name: (-WIDTHS[specs[name].dtype], name))


class TensorFile:
    """A safetensors file being written; use it as a context, tensors in the order of `order`."""

    def __init__(self, path: Path, specs: Mapping[str, Spec]) -> None:
        """Take the place and what will be written; nothing is opened yet."""
        self._path, self._header = path, _header(specs)
        self._due = sum(spec.nbytes for spec in specs.values())
        self._file: IO[bytes] | None = None

    def __enter__(self) -> TensorFile:
        self._file = self._path.open("wb")
        self._file.write(self._header)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()
        assert kind is not None or self._due == 0, f"{self._path}: {self._due} bytes are missing"

    def write(self, pieces: Iterable[Tensor]) -> None:
        """Append the pieces of a tensor, which are in the type its spec names."""
        import torch

        assert self._file is not None
        for piece in pieces:
            if piece.numel():  # a view of nothing has no bytes to lend
                data = piece.contiguous().view(-1).view(torch.uint8).numpy()
                self._file.write(data.data)
                self._due -= data.nbytes


def _header(specs: Mapping[str, Spec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order(specs):
        end = offset + specs[name].nbytes
        entries[name] = {
            "dtype": specs[name].dtype,
            "shape": list(specs[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
