"""Files: whole or not at all, digests at the speed of OpenSSL, the catalog read into its models.

Rules: a file is written beside its place, fsynced and renamed; a folder is fsynced after a name in it changed; a big
file gets another name without being copied where that is possible.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from pipeline.errors import CatalogError, StageError

PIECE = 256 << 10  # bytes
_log = logging.getLogger(__name__)

T = TypeVar("T")


def pieces(stream: BinaryIO, limit: int = sys.maxsize) -> Iterator[memoryview]:
    """Yield what is left of a stream, at most `limit` bytes of it; each piece is valid until the next is asked for.

    The buffer begins on a page. A large bytearray, as in `hashlib.file_digest`, begins 16 bytes into one, and some
    AMD processors then copy from the kernel five times slower: hashing as a whole came down to 0.7 of OpenSSL's speed
    (https://xuanwo.io/2023/04-rust-std-fs-slower-than-python/).
    """
    buffer = memoryview(mmap.mmap(-1, PIECE))
    done = 0
    while done < limit:
        count: int = stream.readinto(buffer[: min(PIECE, limit - done)])  # type: ignore[attr-defined]
        if not count:
            return
        done += count
        yield buffer[:count]


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    hasher = hashlib.sha256()
    with path.open("rb", buffering=0) as f:
        for piece in pieces(f):
            hasher.update(piece)
    return hasher.hexdigest()


def tree_digest(folder: Path) -> str:
    """Return `sha256:<hex>` over the sorted names and digests of a folder's files."""
    lines = [
        f"{sha256_file(p)}  {p.relative_to(folder).as_posix()}\n" for p in sorted(folder.rglob("*")) if p.is_file()
    ]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file whole or not at all.

    Raises:
        StageError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as e:
        raise _unwritable(path, e) from e
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fchmod(f.fileno(), mode)
            os.fsync(f.fileno())
        Path(temporary).replace(path)
    except OSError as e:
        Path(temporary).unlink(missing_ok=True)
        raise _unwritable(path, e) from e
    sync_folder(path.parent)


def _unwritable(path: Path, error: OSError) -> StageError:
    return StageError(f"cannot write {path}: {error.strerror}", hint="free space or choose another folder")


def create(path: Path, data: bytes, mode: int = 0o644) -> bool:
    """Write a file whole unless it exists; return whether this call made it. The folder must exist.

    Raises:
        OSError, StageError: it cannot be written; nothing is left behind.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as beside:
        whole = Path(beside) / path.name
        write(whole, data, mode)
        try:
            os.link(whole, path)  # unlike a rename, refuses to take another's place
        except FileExistsError:
            return False
    sync_folder(path.parent)
    return True


def move(made: Path, path: Path) -> None:
    """Give a finished file of the same file system its name, durably."""
    with made.open("rb") as f:
        os.fsync(f.fileno())
    made.replace(path)
    sync_folder(path.parent)


def put(source: Path, path: Path, *, link: bool = True) -> None:
    """Put a file at another place too, in a folder that is made if missing.

    Args:
        link: by a hard link where that is possible; else, or where it is not, by a copy.

    Raises:
        StageError: a file that a link would replace is there already, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (link and _linked(source.resolve(), path)):
            shutil.copyfile(source, path)
    except OSError as e:
        raise _unwritable(path, e) from e


def _linked(source: Path, path: Path) -> bool:
    try:
        path.hardlink_to(source)
    except FileExistsError:
        raise  # a copy would write into a file that may have other names
    except OSError:  # another file system, one without hard links, or another user's file
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Make a folder's names durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a fresh folder that takes the place of `path` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as f:
                    os.fsync(f.fileno())
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, waiting for whoever holds it; the kernel frees it when a holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("waiting for another process that holds %s", path)
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def load(path: Path, parse: Callable[[str, str], T], *, hint: str = "name a file that can be read") -> T:
    """Return a text file through its parser, `parse(text, name)`; `hint` is what to do where it cannot be read.

    Raises:
        CatalogError: the file is missing, unreadable or not as it must be.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8"
        raise CatalogError(f"{path}: {reason}", hint=hint) from e
    return parse(text, str(path))
