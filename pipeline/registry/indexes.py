"""Chunk indexes in a registry: made from a model file, stored by digest beside it, read within bounds.

Rules: an index is stored only if it is the one that the manifest names; what is read is believed only by that digest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import Refusal, TrustError
from pipeline.manifest import chunks
from pipeline.manifest.chunks import Chunk, Index
from pipeline.manifest.evidence import File
from pipeline.registry import headers, streams
from pipeline.registry.store import Blobs, Store, silent


def make(file: File, path: Path) -> tuple[Index, bytes] | None:
    """Return a file's chunk index and its bytes; None where it is no model, or one of too many chunks.

    Raises:
        TrustError: HOSTILE_MODEL.
    """
    if not headers.has_header(file.name):
        return None
    with path.open("rb", buffering=0) as f:
        return chunks.index(file, chunks.cut(file.name, f, file.size))


def of(listed: Iterable[tuple[File, Path]]) -> list[Index]:
    """Return the indexes of those files that have one; raises TrustError HOSTILE_MODEL."""
    return [made[0] for file, path in listed if (made := make(file, path))]


def put(store: Store, signed: Index, file: File, path: Path) -> None:
    """Store a file's index, if it is the one that was signed.

    Raises:
        TrustError: TAMPERED, when it is not.
    """
    if store.blob_size(signed.sha256) == signed.size:
        return
    made = make(file, path)
    if made is None or made[0] != signed:
        raise TrustError(
            Refusal.TAMPERED,
            f"the chunk index of {path} is not the one that was signed",
            hint="build and sign the release again, then publish",
        )
    with tempfile.NamedTemporaryFile() as f:
        f.write(made[1])
        f.flush()
        store.put_blob(signed.sha256, Path(f.name), silent)


def load(blobs: Blobs, signed: Index, file: File) -> tuple[Chunk, ...]:
    """Return a file's chunks.

    Raises:
        TrustError: as `chunks.parse`, or MISSING_FILE.
        RegistryError: the registry went away.
    """
    with blobs.open_blob(signed.sha256, 0, signed.size) as stream:
        data = streams.read(stream, signed.size)
    return chunks.parse(data, signed, file)
