"""A folder on disk against the list of files it must hold.

Rules: what is there is looked at before anything is opened; files are opened without following links; size before
digest, digest before a model's header. Nothing may be missing and nothing may be extra.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import Refusal, TrustError
from pipeline.manifest.evidence import File
from pipeline.registry import beneath, headers, streams
from pipeline.registry.store import Progress, silent


def check(folder: Path, files: Sequence[File], *, beside: Collection[str] = (), progress: Progress = silent) -> None:
    """Check that a folder holds exactly these files.

    Args:
        beside: names that may stand beside them.

    Raises:
        TrustError: SYMLINK, EXTRA_FILE, MISSING_FILE, TAMPERED (size, digest, or not a regular file) or HOSTILE_MODEL.
        OSError: the folder cannot be read.
    """
    with beneath.root(folder) as root:
        check_shape(root, files, beside=beside)
        meter = streams.Meter(progress, sum(f.size for f in files))
        for wanted in files:
            check_file(root, wanted, meter)
        check_headers(root, files)


def check_shape(root: int, files: Sequence[File], *, beside: Collection[str] = ()) -> None:
    """Check names, kinds and sizes below a folder's handle; raises TrustError."""
    sizes = {f.name: f.size for f in files}
    allowed = {*sizes, *beside}
    folders = parents(allowed)
    found: set[str] = set()
    for name, info in entries(root, folders):
        if stat.S_ISLNK(info.st_mode):
            raise TrustError(Refusal.SYMLINK, f"{name!r} is a symbolic link, and none is followed")
        if stat.S_ISDIR(info.st_mode) and name in folders:
            continue
        if name not in allowed:
            raise TrustError(Refusal.EXTRA_FILE, f"{name!r} is not in the manifest")
        if not stat.S_ISREG(info.st_mode):
            raise TrustError(Refusal.TAMPERED, f"{name} is not a regular file")
        if info.st_size != sizes.get(name, info.st_size):
            raise TrustError(Refusal.TAMPERED, f"{name} has {info.st_size} bytes instead of {sizes[name]}")
        found.add(name)
    if missing := sorted(set(sizes) - found):
        raise TrustError(Refusal.MISSING_FILE, f"missing: {', '.join(missing[:3])}")


def check_file(root: int, wanted: File, meter: streams.Meter) -> None:
    """Check one file's size and digest; raises TrustError."""
    with _opened(root, wanted.name) as f:
        size = os.fstat(f.fileno()).st_size
        if size != wanted.size:
            raise TrustError(Refusal.TAMPERED, f"{wanted.name} has {size} bytes instead of {wanted.size}")
        if streams.digest(f, meter.step(wanted.name)) != wanted.sha256:
            raise TrustError(Refusal.TAMPERED, f"{wanted.name} is not the file that was signed: its digest differs")


def check_headers(root: int, files: Sequence[File]) -> None:
    """Check the headers of the model files; raises TrustError HOSTILE_MODEL."""
    for wanted in files:
        if headers.has_header(wanted.name):
            with _opened(root, wanted.name) as f:
                headers.check(wanted.name, f, wanted.size)


def holds(root: int, wanted: File) -> bool:
    """Return whether exactly this file lies below a folder's handle."""
    try:
        check_file(root, wanted, streams.Meter(silent, 0))
    except TrustError:
        return False
    return True


def entries(root: int, folders: Collection[str], above: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Yield everything below a folder's handle, going into the named folders only."""
    with os.scandir(root) as found:
        names = sorted(entry.name for entry in found)
    for name in names:
        info = os.stat(name, dir_fd=root, follow_symlinks=False)
        path = f"{above}{name}"
        yield path, info
        if stat.S_ISDIR(info.st_mode) and path in folders:
            with beneath.folder(root, name) as inner:
                yield from entries(inner, folders, f"{path}/")


def parents(names: Collection[str]) -> set[str]:
    """Return every folder that lies above one of these names."""
    return {"/".join(parts[:depth]) for name in names if (parts := name.split("/")) for depth in range(1, len(parts))}


@contextmanager
def _opened(root: int, name: str) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        try:
            f = stack.enter_context(beneath.file(root, name))
        except (FileNotFoundError, NotADirectoryError) as e:
            raise TrustError(Refusal.MISSING_FILE, f"missing: {name}") from e
        yield f
