"""Files below a folder that someone else may have filled.

Rules: names are opened component by component from a handle of the folder, and no symbolic link is followed, so that
nothing leads out and nothing can be exchanged between check and use. The folder itself may be reached over a link.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NoReturn

from pipeline.errors import Refusal, TrustError
from pipeline.manifest.names import safe_name

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
TEMPORARY = ".new-"


@contextmanager
def root(path: Path) -> Iterator[int]:
    """Yield a handle of a folder."""
    handle = os.open(path, _FOLDER)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def folder(parent: int, name: str = "", *, create: bool = False) -> Iterator[int]:
    """Yield a handle of the folder `name` below `parent`.

    Raises:
        TrustError: SYMLINK or UNSAFE_NAME.
        OSError: it is missing or no folder.
    """
    handle = os.dup(parent)
    try:
        for part in safe_name(name).split("/") if name else []:
            inner = _enter(handle, part, create=create)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def _enter(parent: int, part: str, *, create: bool) -> int:
    if create:
        with suppress(FileExistsError):
            os.mkdir(part, 0o755, dir_fd=parent)
            os.fsync(parent)
    try:
        return os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as e:
        _refuse_link(parent, part, e)


@contextmanager
def file(parent: int, name: str) -> Iterator[BinaryIO]:
    """Yield a regular file below `parent`, unbuffered, for reading.

    Raises:
        TrustError: SYMLINK, UNSAFE_NAME, or TAMPERED (a pipe, device or folder stands in its place).
        OSError: it is missing.
    """
    above, _, last = safe_name(name).rpartition("/")
    with folder(parent, above) as inner:
        handle = open_in(inner, last, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise TrustError(Refusal.TAMPERED, f"{name} is not a regular file")
        yield io.FileIO(handle, "rb", closefd=False)
    finally:
        os.close(handle)


def make_executable(parent: int, name: str) -> None:
    """Let everyone run a regular file below `parent`; raises as `file`."""
    with file(parent, name) as f:
        os.fchmod(f.fileno(), 0o755)


def open_in(parent: int, part: str, flags: int, mode: int = 0o600) -> int:
    """Open one name in a folder without following a link; raises TrustError SYMLINK, OSError."""
    try:
        return os.open(safe_name(part), flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=parent)
    except OSError as e:
        _refuse_link(parent, part, e)


def _refuse_link(parent: int, part: str, error: OSError) -> NoReturn:
    if error.errno in {errno.ELOOP, errno.ENOTDIR} and is_link(parent, part):
        raise TrustError(Refusal.SYMLINK, f"{part} is a symbolic link, and none is followed") from error
    raise error


def is_link(parent: int, part: str) -> bool:
    """Return whether a name in a folder is a symbolic link."""
    try:
        return stat.S_ISLNK(os.stat(part, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


@contextmanager
def fresh(parent: int, mode: int = 0o644) -> Iterator[tuple[str, BinaryIO]]:
    """Yield the name and stream of a new file, made durable at the end of the block and gone if it fails."""
    name = TEMPORARY + secrets.token_hex(8)
    handle = open_in(parent, name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "r+b") as f:
            yield name, f
            f.flush()
            os.fchmod(handle, mode)
            os.fsync(handle)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
        raise


def write(parent: int, name: str, data: bytes, mode: int = 0o644) -> None:
    """Put a file in a folder, whole or not at all, in the place of what was there."""
    with fresh(parent, mode) as (temporary, f):
        f.write(data)
    os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    os.fsync(parent)


def remove(parent: int, name: str) -> None:
    """Remove a name and what is below it; what a link points to stays."""
    try:
        os.unlink(name, dir_fd=parent)
    except IsADirectoryError:
        shutil.rmtree(name, dir_fd=parent)
    except FileNotFoundError:
        return


def exchange(parent: int, one: str, other: str) -> None:
    """Let two names in a folder change places in one step.

    Where the file system cannot (renameat2(2) with RENAME_EXCHANGE), there is an instant without `other`.
    """
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    if renameat2(parent, one.encode(), parent, other.encode(), 2) == 0:
        os.fsync(parent)
        return
    aside = TEMPORARY + secrets.token_hex(8)
    os.rename(other, aside, src_dir_fd=parent, dst_dir_fd=parent)
    os.rename(one, other, src_dir_fd=parent, dst_dir_fd=parent)
    os.rename(aside, one, src_dir_fd=parent, dst_dir_fd=parent)
    os.fsync(parent)
