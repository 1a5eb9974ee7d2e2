"""One file on its way from a registry: kept where it was interrupted, checked when it is whole.

Rules: what an earlier run brought is hashed again before it counts; at most the manifest's size is written; a file
whose digest is wrong does not stay.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO

from pipeline.errors import Refusal, RegistryError, TrustError
from pipeline.manifest.evidence import File
from pipeline.registry import beneath, streams

# A file's bytes from an offset on.
Source = Callable[[int], AbstractContextManager[BinaryIO]]


def download(source: Source, wanted: File, partial: int, advance: Callable[[int], None]) -> None:
    """Bring a file whole and checked to `<digest>` in the folder of partial files.

    Raises:
        TrustError: TAMPERED (then nothing of it stays), MISSING_FILE, or SYMLINK (one was planted in its place).
        RegistryError: the registry went away; what came so far stays.
        OSError: the disk is full; what came so far stays.
    """
    hasher = hashlib.sha256()
    with _partial(partial, wanted) as out:
        have = streams.copy(out, None, wanted.size, hasher, advance)
        if have < wanted.size:
            with source(have) as stream:
                have += streams.copy(stream, out, wanted.size - have, hasher, advance)
        out.flush()
        os.fsync(out.fileno())
    if have < wanted.size:
        raise RegistryError(
            f"{wanted.name} ended after {have} of {wanted.size} bytes", hint="pull again: it goes on from there"
        )
    if hasher.hexdigest() != wanted.sha256:
        os.unlink(wanted.sha256, dir_fd=partial)
        raise TrustError(Refusal.TAMPERED, f"{wanted.name} is not the file that was signed: its digest differs")


def partial_size(partial: int, wanted: File) -> int:
    """Return how many bytes of a file an earlier run left."""
    try:
        return min(os.stat(wanted.sha256, dir_fd=partial, follow_symlinks=False).st_size, wanted.size)
    except FileNotFoundError:
        return 0


@contextmanager
def _partial(folder: int, wanted: File) -> Iterator[BinaryIO]:
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK
    handle = beneath.open_in(folder, wanted.sha256, flags, 0o644)
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1 or info.st_size > wanted.size:
        # Not what an earlier run left: a file with a second name elsewhere must not be written to.
        os.close(handle)
        beneath.remove(folder, wanted.sha256)
        handle = beneath.open_in(folder, wanted.sha256, flags | os.O_EXCL, 0o644)
    with os.fdopen(handle, "r+b") as f:
        yield f
