"""A registry in a folder.

Rules: a file is written beside its place, made durable and then linked or renamed there, so that it appears whole or
not at all; creating is a hard link, so that of two writers one wins. No symbolic link below the root is followed.
The writers' lock only serves tidying up: what it guards holds without it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ConflictError, Refusal, RegistryError, TrustError
from pipeline.manifest.names import safe_name
from pipeline.registry import beneath, layout, streams
from pipeline.registry.store import Progress

_HINTS = {
    errno.ENOSPC: "free space, then run it again: what was stored is kept",
    errno.EDQUOT: "free space, then run it again: what was stored is kept",
    errno.EACCES: "run it as a user who may write there",
    errno.EROFS: "it is mounted read-only; mount it for writing",
    errno.EPERM: "its file system may lack hard links; choose a folder on another one",
    errno.EOPNOTSUPP: "its file system lacks hard links; choose a folder on another one",
}


class FolderStore:
    """A registry in a folder; the folder is created by the first write."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        return str(self._root)

    def put_blob(self, digest: str, source: Path, progress: Progress) -> bool:
        name = layout.blob(digest)
        with self._explained(), source.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            if self.blob_size(digest) == size:
                return False
            with self._writing(layout.BLOBS) as folder:
                self._copy(f, folder, name.rpartition("/")[2], size, progress)
        return True

    def _copy(self, source: BinaryIO, folder: int, digest: str, size: int, progress: Progress) -> None:
        hasher = hashlib.sha256()
        meter = streams.Meter(progress, size)
        with beneath.fresh(folder, 0o444) as (temporary, target):
            streams.copy(source, target, size, hasher, meter.step(digest))
            if hasher.hexdigest() != digest:
                raise TrustError(
                    Refusal.TAMPERED,
                    f"a file to be stored has another digest than {digest[:16]}…",
                    hint="something changed it after it was signed; build and sign the release again",
                )
        os.rename(temporary, digest, src_dir_fd=folder, dst_dir_fd=folder)

    def blob_size(self, digest: str) -> int | None:
        try:
            with self._opened(layout.blob(digest)) as f:
                return os.fstat(f.fileno()).st_size
        except FileNotFoundError:
            return None

    @contextmanager
    def open_blob(self, digest: str, offset: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        with ExitStack() as stack:
            try:
                f = stack.enter_context(self._opened(layout.blob(digest)))
            except FileNotFoundError as e:
                raise TrustError(Refusal.MISSING_FILE, f"the registry lacks the file {digest[:16]}…") from e
            f.seek(offset)
            if length is not None:
                f = streams.Limited(f, length)  # type: ignore[assignment]  # a RawIOBase is a BinaryIO in all that is used
            yield f  # what the caller's block raises is not the registry's fault and passes unchanged

    def create(self, name: str, data: bytes) -> None:
        above, _, last = safe_name(name).rpartition("/")
        with self._explained(), self._writing(above) as folder:
            with beneath.fresh(folder) as (temporary, f):
                f.write(data)
            try:
                os.link(temporary, last, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            except FileExistsError as e:
                raise ConflictError(
                    f"{name} exists already", hint="another publisher was first; look, then go on"
                ) from e
            finally:
                os.unlink(temporary, dir_fd=folder)

    def read(self, name: str, limit: int) -> bytes | None:
        try:
            with self._explained(passing=FileNotFoundError), self._opened(name) as f:
                if os.fstat(f.fileno()).st_size > limit:
                    raise TrustError(Refusal.OVERSIZED, f"{name} has more than the {limit} bytes that are read")
                return f.read(limit)
        except FileNotFoundError:
            return None

    def names(self, prefix: str, after: str = "") -> list[str]:
        try:
            with self._explained(passing=FileNotFoundError), beneath.root(self._root) as root:
                found = list(_walk(root, prefix.rstrip("/")))
        except FileNotFoundError:
            return []
        return sorted(name for name in found if name > after)

    @contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO]:
        with ExitStack() as stack:
            with self._explained(passing=FileNotFoundError):
                root = stack.enter_context(beneath.root(self._root))
                f = stack.enter_context(beneath.file(root, name))
            yield f

    @contextmanager
    def _writing(self, name: str) -> Iterator[int]:
        self._root.mkdir(parents=True, exist_ok=True)
        with beneath.root(self._root) as root:
            lock = beneath.open_in(root, ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                with beneath.folder(root, name, create=True) as folder:
                    _tidy(folder)
                    yield folder
                    os.fsync(folder)
            finally:
                os.close(lock)

    @contextmanager
    def _explained(self, passing: tuple[type[OSError], ...] | type[OSError] = ()) -> Iterator[None]:
        try:
            yield
        except passing:
            raise
        except OSError as e:
            hint = _HINTS.get(e.errno or 0, "look at the folder and its disk, then run it again")
            raise RegistryError(f"registry {self._root}: {e.strerror}", hint=hint) from e


def _tidy(folder: int) -> None:
    """Remove what writers that were killed left behind: under the lock nobody else is writing."""
    for name in os.listdir(folder):
        if name.startswith(beneath.TEMPORARY):
            os.unlink(name, dir_fd=folder)


def _walk(root: int, name: str) -> Iterator[str]:
    with beneath.folder(root, name) as folder, os.scandir(folder) as entries:
        kinds = [(entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries]
    for entry, mode in kinds:
        if stat.S_ISDIR(mode):
            yield from _walk(root, f"{name}/{entry}")
        elif stat.S_ISREG(mode) and not entry.startswith("."):
            yield f"{name}/{entry}"
