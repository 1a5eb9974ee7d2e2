"""Model files that differ in a few tensors or in what they say of themselves."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

WORDS = [f"token-{number}" for number in range(4000)]


def model(
    tensors: Mapping[str, tuple[int, int]], said: str = "first", words: list[str] | None = None, arch: str = "llama"
) -> bytes:
    """Return a GGUF file as llama.cpp's own writer makes it.

    Args:
        tensors: by name, how many rows of 1 KiB and what they depend on.
        said: a metadata entry.
        words: a vocabulary.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        writer = gguf.GGUFWriter(path, arch)
        writer.add_string("general.name", said)
        writer.add_array("tokenizer.ggml.tokens", words or ["a"])
        for name, (rows, seed) in tensors.items():
            writer.add_tensor(name, np.random.default_rng(seed).random((rows, 256), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def layers(count: int, rows: int = 40, **changed: int) -> dict[str, tuple[int, int]]:
    """Return the tensors of a model of `count` tensors, each made of its number but those in `changed`."""
    names = [f"blk.{number}.weight" for number in range(count)]
    return {name: (rows, changed.get(f"t{number}", number)) for number, name in enumerate(names)}
