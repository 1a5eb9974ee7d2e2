"""A model file rebuilt from what changed: chunks that a kept version has are copied, the others are fetched by ranges.

Rules: a chunk's digest is checked as it is copied or fetched, the whole file's when it is there (`download`); a chunk
that the disk does not give back right is fetched; neighbouring chunks come in one range, and a gap that is shorter than
what another request costs comes with them.
"""

from __future__ import annotations

import io
from collections.abc import Container, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import BinaryIO

from pipeline.errors import Refusal, TrustError
from pipeline.manifest import chunks
from pipeline.manifest.chunks import Chunk
from pipeline.manifest.encoding import sha256
from pipeline.registry import beneath, streams
from pipeline.registry.counted import Counted

GAP = 32 << 10  # bytes


@dataclass(frozen=True)
class Run:
    """Neighbouring chunks that come from one place: the registry, or what is on the disk."""

    fetched: bool
    chunks: tuple[Chunk, ...]

    @property
    def size(self) -> int:
        return sum(chunk.size for chunk in self.chunks)


def plan(wanted: Sequence[Chunk], kept: Container[str]) -> list[Run]:
    """Return where neighbouring chunks are to come from, in their order.

    Args:
        kept: the digests of chunks that are on the disk.
    """
    runs = [Run(fetched, tuple(run)) for fetched, run in groupby(wanted, lambda c: c.sha256 not in kept)]
    within = [run.fetched or (0 < at < len(runs) - 1 and run.size <= GAP) for at, run in enumerate(runs)]
    parts = groupby(zip(within, runs, strict=True), lambda pair: pair[0])
    return [Run(fetched, tuple(c for _, run in part for c in run.chunks)) for fetched, part in parts]


@dataclass(frozen=True)
class Place:
    """Where a file below the folder of versions has a chunk; offset in bytes."""

    path: str
    offset: int


def places(versions: int, paths: Iterable[str], wanted: Sequence[Chunk]) -> dict[str, Place]:
    """Return where files have wanted chunks, by digest; a file that is no longer a model has none."""
    digests = {chunk.sha256 for chunk in wanted}
    found: dict[str, Place] = {}
    for path in paths:
        if found.keys() >= digests:
            break
        try:
            with beneath.file(versions, path) as f:
                size = f.seek(0, io.SEEK_END)
                f.seek(0)
                for chunk in chunks.cut(path, f, size):
                    if chunk.sha256 in digests:
                        found.setdefault(chunk.sha256, Place(path, chunk.offset))
        except (TrustError, OSError):
            continue
    return found


@dataclass
class Rebuilt:
    """A file that can be read from any offset on: `kept` says where below the folder of versions its chunks lie."""

    registry: Counted
    digest: str
    wanted: Sequence[Chunk]
    kept: Mapping[str, Place]
    versions: int
    _files: dict[str, BinaryIO] = field(default_factory=dict, init=False)

    @contextmanager
    def open(self, start: int) -> Iterator[BinaryIO]:
        """Yield the file's bytes from an offset on; reading raises TrustError TAMPERED, and as the registry does."""
        with ExitStack() as stack:
            for path in sorted({place.path for place in self.kept.values()}):
                self._files[path] = stack.enter_context(beneath.file(self.versions, path))
            pieces = stack.enter_context(closing(self._pieces(start)))
            yield streams.Joined(pieces)  # type: ignore[misc]  # a RawIOBase is a BinaryIO in all that is used of it

    def _pieces(self, start: int) -> Generator[bytes]:
        left = [chunk for chunk in self.wanted if chunk.offset + chunk.size > start]
        skip = start - left[0].offset if left else 0
        for run in plan(left, self.kept):
            for piece in self._fetched(run.chunks) if run.fetched else self._copied(run.chunks):
                yield piece[skip:]
                skip = 0

    def _copied(self, run: Sequence[Chunk]) -> Iterator[bytes]:
        for chunk in run:
            data = self._read(chunk, self.kept[chunk.sha256])
            if data is None:
                yield from self._fetched([chunk])
            else:
                self.registry.reuse(chunk.size)
                yield data

    def _read(self, chunk: Chunk, place: Place) -> bytes | None:
        f = self._files[place.path]
        try:
            f.seek(place.offset)
            data = streams.read(f, chunk.size)
        except OSError:
            return None
        return data if sha256(data) == chunk.sha256 else None

    def _fetched(self, run: Sequence[Chunk]) -> Iterator[bytes]:
        with self.registry.open_blob(self.digest, run[0].offset, sum(chunk.size for chunk in run)) as stream:
            for chunk in run:
                data = streams.read(stream, chunk.size)
                if sha256(data) != chunk.sha256:
                    raise TrustError(
                        Refusal.TAMPERED, f"{chunk.size} bytes at {chunk.offset} are not those of the chunk index"
                    )
                yield data
