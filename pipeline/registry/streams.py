"""Bytes on their way: counted, bounded and hashed while they pass.

Rules: constant memory; one pass.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from typing import BinaryIO, Protocol

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

    def blob(self, label: str) -> Progress:
        """Return the progress of the next blob: its own count of bytes, added to what was done before."""
        before = self._done

        def report(done: int, _total: int, _label: str) -> None:
            self._done = before + done
            self._progress(self._done, self._total, label)

        return report

    def step(self, label: str) -> Callable[[int], None]:
        """Return a function that takes the bytes moved since its last call."""

        def advance(count: int) -> None:
            self._done += count
            self._progress(self._done, self._total, label)

        return advance


def idle(count: int) -> None:
    """Count nothing."""


def digest(stream: BinaryIO, advance: Callable[[int], None] = idle) -> str:
    """Return the hex SHA-256 of what is left of a stream."""
    hasher = hashlib.sha256()
    copy(stream, None, sys.maxsize, hasher, advance)
    return hasher.hexdigest()


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
