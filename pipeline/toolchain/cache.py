"""Where machine-wide build results are kept, and who may write there at a time.

Rules: nothing outside the cache folder is written; one process builds, the others wait for it.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)


def folder() -> Path:
    """Return `$EDGE_RELEASE_CACHE`, else `edge-release` in the user's cache folder."""
    if own := os.environ.get("EDGE_RELEASE_CACHE"):
        return Path(own).resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").resolve() / "edge-release"


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
