"""How long to wait before another try."""

from __future__ import annotations

BASE_S = 1.0
LONGEST_S = 120.0


def backoff(failures: int, *, base_s: float = BASE_S, longest_s: float = LONGEST_S) -> float:
    """Return seconds to wait after so many failures in a row: doubled by each, up to the longest."""
    if failures <= 0:
        return 0.0
    doubled: float = base_s * 2.0 ** min(failures - 1, 60)
    return min(doubled, longest_s)
