"""The small files in which the kernel says what it knows (`/proc`, `/sys`).

Rules: what cannot be read, or is not what it should be, is not there (None); nothing is raised. The root is an
argument, so that recorded trees can be read.
"""

from __future__ import annotations

import re
from pathlib import Path

MAX_BYTES = 4 << 20  # /proc/cpuinfo of a machine with a thousand processors is about 1.5 MiB
_NUMBER = re.compile(r"-?[0-9]{1,20}")


def text(path: Path) -> str | None:
    """Return a file's text without the NUL bytes and white space around it, None where it cannot be read."""
    try:
        with path.open("rb") as f:
            data = f.read(MAX_BYTES)
    except (OSError, ValueError):  # a sensor may be there and still refuse to be read
        return None
    return data.decode("utf-8", errors="replace").strip("\0 \t\r\n")


def number(path: Path) -> int | None:
    """Return a file's decimal number, None where there is none."""
    found = _NUMBER.fullmatch(text(path) or "")
    return int(found[0]) if found else None


def paths(root: Path, pattern: str) -> list[Path]:
    """Return what matches `pattern` beneath `root`, sorted; links are followed, as `/sys/class` consists of them."""
    try:
        return sorted(root.glob(pattern))
    except OSError:
        return []
