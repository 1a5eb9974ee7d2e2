"""Bytes on their way: counted, bounded and hashed while they pass.

Rules: constant memory; one pass.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

from pipeline.ports import files
from pipeline.registry.store import Progress


class Hasher(Protocol):
    """A running digest."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


class Meter:
    """Adds up what several streams moved and reports it as one."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    @property
    def done(self) -> int:
        """Bytes moved so far."""
        return self._done

    def rewind(self, done: int) -> None:
        """Forget what was moved since `done` bytes."""
        self._done = done

    def blob(self, label: str) -> Progress:
        """Return the progress of the next blob: its own count of bytes, added to what was done before."""
        before = self._done

        def report(done: int, _total: int, _label: str) -> None:
            self._done = before + done
            self._progress(self._done, self._total, label)

        return report

    def step(self, label: str, more: Callable[[], str] = str) -> Callable[[int], None]:
        """Return a function that takes the bytes moved since its last call; `more` is what else is to be said."""

        def advance(count: int) -> None:
            self._done += count
            self._progress(self._done, self._total, label + more())

        return advance


class Limited(io.RawIOBase):
    """What is left of a stream, at most `length` bytes of it."""

    def __init__(self, stream: BinaryIO, length: int) -> None:
        self._stream = stream
        self._left = length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._stream.readinto(memoryview(buffer)[: self._left])  # type: ignore[attr-defined]
        self._left -= count
        return count


class Told(io.RawIOBase):
    """A stream whose bytes are told to `advance` as they are read."""

    def __init__(self, stream: BinaryIO, advance: Callable[[int], None]) -> None:
        self._stream = stream
        self._advance = advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._stream.readinto(buffer)  # type: ignore[attr-defined]
        self._advance(count)
        return count


class Joined(io.RawIOBase):
    """Pieces of bytes as one stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._piece:
            if (piece := next(self._pieces, None)) is None:
                return 0
            self._piece = memoryview(piece)
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count


def idle(count: int) -> None:
    """Count nothing."""


def digest(stream: BinaryIO, advance: Callable[[int], None] = idle) -> str:
    """Return the hex SHA-256 of what is left of a stream."""
    hasher = hashlib.sha256()
    copy(stream, None, sys.maxsize, hasher, advance)
    return hasher.hexdigest()


def read(stream: BinaryIO, limit: int) -> bytes:
    """Return what is left of a stream, at most `limit` bytes of it."""
    return b"".join(bytes(piece) for piece in files.pieces(stream, limit))


def copy(
    source: BinaryIO, target: BinaryIO | None, limit: int, hasher: Hasher, advance: Callable[[int], None] = idle
) -> int:
    """Pass at most `limit` bytes from `source` through `hasher` to `target`; return how many there were."""
    done = 0
    for piece in files.pieces(source, limit):
        hasher.update(piece)
        if target is not None:
            target.write(piece)
        done += len(piece)
        advance(len(piece))
    return done
