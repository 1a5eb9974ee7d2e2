"""How many bytes of a pull came from the registry, and how many were on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.registry import streams
from pipeline.registry.store import Blobs


@dataclass
class Counted:
    """A registry's files, counted as they are read; in bytes."""

    blobs: Blobs
    fetched: int = 0
    reused: int = 0

    @contextmanager
    def open_blob(self, digest: str, offset: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        """Yield a blob's bytes, as the registry does."""
        with self.blobs.open_blob(digest, offset, length) as stream:
            yield streams.Told(stream, self._fetch)  # type: ignore[misc]  # a RawIOBase is a BinaryIO in all that is used

    def reuse(self, count: int) -> None:
        """Count bytes that need not be fetched."""
        self.reused += count

    def told(self) -> str:
        """Return what a bar says beside a file's name."""
        return f", {self.fetched / 1e6:.1f} MB fetched, {self.reused / 1e6:.1f} MB reused" if self.reused else ""

    def _fetch(self, count: int) -> None:
        self.fetched += count
