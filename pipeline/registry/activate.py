"""Which version of a folder is in use: two links, and the versions they keep alive.

Rules: a link is swapped by renaming a fresh one over it, so that it always leads somewhere; `previous` is set before
`current`, so that no version is forgotten in between; what neither link names is removed.
"""

from __future__ import annotations

import os
import re
import stat

from pipeline.registry import beneath

VERSIONS = "versions"
CURRENT = "current"
PREVIOUS = "previous"

_TARGET = re.compile(rf"{VERSIONS}/([0-9]{{1,10}})")
_VERSION = re.compile(r"[0-9]{1,10}")


def active(root: int, link: str = CURRENT) -> str | None:
    """Return the version a link names, or None where it names none that exists."""
    try:
        found = _TARGET.fullmatch(os.readlink(link, dir_fd=root))
        return found[1] if found and stat.S_ISDIR(os.stat(link, dir_fd=root).st_mode) else None
    except OSError:
        return None


def activate(root: int, version: str) -> None:
    """Let `current` name a version and `previous` the one before it."""
    before = active(root)
    if before == version:
        return
    if before is not None:
        _swap(root, PREVIOUS, before)
    _swap(root, CURRENT, version)


def kept(versions: int) -> list[str]:
    """Return the versions in a folder of versions, newest first."""
    return sorted(filter(_VERSION.fullmatch, os.listdir(versions)), key=int, reverse=True)


def prune(root: int, versions: int, besides: str | None = None) -> None:
    """Remove the versions that neither link names, but the one `besides`, and what interrupted pulls left."""
    named = {active(root, CURRENT), active(root, PREVIOUS), besides}
    for name in os.listdir(versions):
        if name.startswith(beneath.TEMPORARY) or (_VERSION.fullmatch(name) and name not in named):
            beneath.remove(versions, name)


def _swap(root: int, link: str, version: str) -> None:
    fresh = f"{beneath.TEMPORARY}{link}"
    beneath.remove(root, fresh)
    os.symlink(f"{VERSIONS}/{version}", fresh, dir_fd=root)
    os.rename(fresh, link, src_dir_fd=root, dst_dir_fd=root)
    os.fsync(root)
