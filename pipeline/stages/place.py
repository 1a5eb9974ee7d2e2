"""Big files of the build, put in their place without copying where that is possible."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pipeline.errors import StageError
from pipeline.ports import files


def move(made: Path, out: Path) -> None:
    """Give a finished file of the same file system its name, durably."""
    with made.open("rb") as f:
        os.fsync(f.fileno())
    made.replace(out)
    files.sync_folder(out.parent)


def share(kept: Path, out: Path) -> None:
    """Put a file at `out` too: a hard link, across file systems a copy.

    Raises:
        StageError: the disk is full.
    """
    try:
        out.hardlink_to(kept)
    except OSError:
        try:
            shutil.copyfile(kept, out)
        except OSError as e:
            raise StageError(f"cannot write {out.name}: {e.strerror}", hint="free space") from e
