"""What a registry must be able to do, and nothing about releases.

Rules: blobs are named by their digest and never change; other objects are created once and never overwritten; what is
read is untrusted and bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from pipeline.errors import RegistryError

# Called with bytes done, bytes in total, and what is being worked on.
Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, label: str) -> None:
    """Report nothing."""


class Blobs(Protocol):
    """Files by their digest."""

    def open_blob(self, digest: str, offset: int = 0, length: int | None = None) -> AbstractContextManager[BinaryIO]:
        """Yield a blob's bytes from `offset` on, at most `length`; a missing blob is a TrustError MISSING_FILE."""
        ...


class Store(Blobs, Protocol):
    """A folder or a bucket; every method raises RegistryError where the registry cannot be used."""

    @property
    def url(self) -> str:
        """How messages name this registry; without secrets."""
        ...

    def put_blob(self, digest: str, source: Path, progress: Progress) -> bool:
        """Store a file under its digest; False where it was there already, with the source's size.

        Raises:
            TrustError: TAMPERED, when the source has another digest; nothing is stored under the name then.
        """
        ...

    def blob_size(self, digest: str) -> int | None:
        """Return a blob's size in bytes, or None where there is none."""
        ...

    def create(self, name: str, data: bytes) -> None:
        """Create an object whole or not at all.

        Raises:
            ConflictError: there is one of that name, whatever its content; nothing was overwritten.
        """
        ...

    def read(self, name: str, limit: int) -> bytes | None:
        """Return an object, or None where there is none.

        Raises:
            TrustError: OVERSIZED, when it has more than `limit` bytes.
        """
        ...

    def names(self, prefix: str, after: str = "") -> list[str]:
        """Return the sorted names that start with `prefix` (a folder, ending in /) and sort after `after`."""
        ...


def open_store(url: str) -> Store:
    """Return the registry at a folder's path, `file:///path` or `s3://bucket/prefix`.

    Raises:
        RegistryError: no such kind of registry.
    """
    parts = urlsplit(url)
    if "://" not in url:
        from pipeline.registry.folder import FolderStore

        return FolderStore(Path(url))
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        from pipeline.registry.folder import FolderStore

        return FolderStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc and not set(parts.netloc) & set("@:"):
        from pipeline.registry.s3 import connect

        return connect(parts.netloc, parts.path.strip("/"))
    raise RegistryError(
        f"no registry of kind {parts.scheme}://" if parts.scheme != "s3" else "a bucket's address has only its name",
        hint="give a folder, file:///path or s3://bucket/prefix; credentials come from the AWS variables or profile",
    )
