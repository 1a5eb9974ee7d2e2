"""Model files are looked into before they are used: a header is read by our own bounded parser before any loader's."""

from __future__ import annotations

import io
from typing import BinaryIO

from pipeline.errors import TrustError
from pipeline.manifest import gguf, safetensors


def check(name: str, stream: BinaryIO, size: int) -> None:
    """Read the header of a model file; other files pass.

    Args:
        stream: at the file's beginning.
        size: of the file, in bytes.

    Raises:
        TrustError: HOSTILE_MODEL.
    """
    if not has_header(name):
        return
    buffered = io.BufferedReader(stream)  # type: ignore[type-var]  # a raw stream may read short, this one does not
    try:
        read_header = gguf.read_header if name.endswith(".gguf") else safetensors.read_header
        read_header(buffered, size)
    except TrustError as e:
        raise TrustError(e.refusal, f"{name}: {e.message}", hint=e.hint) from e
    finally:
        buffered.detach()


def has_header(name: str) -> bool:
    """Return whether `check` looks into files of this name."""
    return name.endswith((".gguf", ".safetensors"))
