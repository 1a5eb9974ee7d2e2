"""The chunk index of a model file: what a consumer compares with the file it has, to fetch only what changed.

A chunk is a tensor's data with the padding behind it, in pieces of MAX_CHUNK where it is longer; before the tensors, a
GGUF's metadata, each long entry by itself (vocabularies seldom change), and the list of tensors.

Rules: the index follows from the file's bytes alone; chunks are listed in order and have no offsets, so that none can
overlap another or leave a gap; an index is believed only where its own digest is signed, it is of the file wanted and
its sizes add up to that file's.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, BinaryIO, Final, Literal

from pydantic import Field

from pipeline.errors import Refusal, TrustError
from pipeline.manifest import gguf, safetensors
from pipeline.manifest.encoding import Count, Record, Sha256, decode, sha256
from pipeline.manifest.evidence import File

CHUNKS_TYPE: Final = "https://edge-release.dev/chunks/v1"
MAX_CHUNK = 4 << 20  # bytes; what a consumer holds in memory at a time
MAX_CHUNKS = 131_072
MAX_BYTES = 16 << 20  # of an index
_LONG = 16 << 10  # bytes; a metadata entry from this on is a chunk of its own

_Size = Annotated[int, Field(gt=0, le=MAX_CHUNK)]


class Index(Record):
    """Where the chunks of one of a variant's files are listed: the index's own size in bytes and digest."""

    file: str
    size: Annotated[int, Field(gt=0, le=MAX_BYTES)]
    sha256: Sha256


class Chunks(Record):
    """A file's chunks in order, each its size in bytes and its digest."""

    type_: Annotated[Literal["https://edge-release.dev/chunks/v1"], Field(alias="_type")] = CHUNKS_TYPE
    size: Count
    sha256: Sha256
    chunks: Annotated[list[tuple[_Size, Sha256]], Field(max_length=MAX_CHUNKS)]


@dataclass(frozen=True)
class Chunk:
    """A chunk in its place; offset and size in bytes."""

    offset: int
    size: int
    sha256: str


def cut(name: str, stream: BinaryIO, size: int) -> Iterator[Chunk]:
    """Yield the chunks of a model file.

    Args:
        stream: the file, at its start; it can seek.
        size: bytes the file has.

    Raises:
        TrustError: HOSTILE_MODEL.
    """
    bounds = _bounds(name, stream, size)
    stream.seek(0)
    buffered = io.BufferedReader(stream, MAX_CHUNK)  # type: ignore[type-var]  # a raw stream may read short
    try:
        for start, end in pairwise(bounds):
            yield Chunk(start, end - start, sha256(buffered.read(end - start)))
    finally:
        buffered.detach()


def index(file: File, found: Iterable[Chunk]) -> tuple[Index, bytes] | None:
    """Return the index of a file's chunks and its bytes; None where there are more chunks than are read."""
    listed = [(chunk.size, chunk.sha256) for chunk in found]
    if len(listed) > MAX_CHUNKS:
        return None
    data = Chunks(size=file.size, sha256=file.sha256, chunks=listed).encode()
    return Index(file=file.name, size=len(data), sha256=sha256(data)), data


def parse(data: bytes, signed: Index, file: File) -> tuple[Chunk, ...]:
    """Return a file's chunks from the untrusted bytes of its index.

    Raises:
        TrustError: OVERSIZED, TAMPERED, MALFORMED, or SWAPPED (it is the index of another file).
    """
    if len(data) > signed.size:
        raise TrustError(Refusal.OVERSIZED, f"the chunk index of {file.name} has more than {signed.size} bytes")
    if sha256(data) != signed.sha256:
        raise TrustError(Refusal.TAMPERED, f"the chunk index of {file.name} is not the one that was signed")
    listed = decode(data, Chunks, f"the chunk index of {file.name}")
    if (listed.sha256, listed.size) != (file.sha256, file.size):
        raise TrustError(Refusal.SWAPPED, f"the chunk index of {file.name} is of another file")
    if sum(size for size, _ in listed.chunks) != file.size:
        raise TrustError(Refusal.MALFORMED, f"the chunks of {file.name} do not add up to its {file.size} bytes")
    return tuple(_placed(listed))


def _placed(listed: Chunks) -> Iterator[Chunk]:
    """Yield each chunk with its offset."""
    offset = 0
    for size, digest in listed.chunks:
        yield Chunk(offset, size, digest)
        offset += size


def _bounds(name: str, stream: BinaryIO, size: int) -> list[int]:
    """Return where chunks begin, and the file's end."""
    buffered = io.BufferedReader(stream)  # type: ignore[type-var]  # a raw stream may read short, this one does not
    try:
        if name.endswith(".gguf"):
            header = gguf.read_header(buffered, size)
            seams, tensors = _long(header.seams), header.tensors
        else:
            seams, tensors = [], safetensors.read_header(buffered, size).tensors
    finally:
        buffered.detach()
    starts = sorted({0, *seams, *(t.offset for t in tensors), size})
    return _bounded(starts)


def _long(seams: Sequence[int]) -> list[int]:
    """Return where a long metadata entry begins or ends, and where the last one ends."""
    long = [bound for pair in pairwise(seams) if pair[1] - pair[0] >= _LONG for bound in pair]
    return [*long, seams[-1]]


def _bounded(starts: list[int]) -> list[int]:
    pieces = [at for start, end in pairwise(starts) for at in range(start, end, MAX_CHUNK)]
    return [*pieces, starts[-1]]
