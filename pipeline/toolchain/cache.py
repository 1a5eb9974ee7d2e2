"""Where machine-wide build results are kept.

Rules: nothing outside the cache folder is written; one process builds, the others wait for it (`files.locked`).
"""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """Return `$EDGE_RELEASE_CACHE`, else `edge-release` in the user's cache folder."""
    if own := os.environ.get("EDGE_RELEASE_CACHE"):
        return Path(own).resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").resolve() / "edge-release"
