"""How figures and names are written, for people.

Rules: three significant digits and a unit; what is not known is a dash, never a zero; a name from outside is one line
of visible characters: what would break lines, hide or reorder text is shown as U+FFFD.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence

NONE = "\u2013"
_SIZES = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def plain(value: object) -> str:
    """Return anything as one line of visible text."""
    line = " ".join(str(value).split())
    return "".join("\ufffd" if unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Co"} else letter for letter in line)


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure with `digits` significant digits; very small and very large ones with an exponent."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e9:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def whole(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def share(value: float | None) -> str:
    """Return a fraction of one, as scores are written."""
    return NONE if value is None else f"{value:.3f}"


def ratio(value: float | None) -> str:
    """Return a ratio near one."""
    return NONE if value is None else f"{value:.4f}"


def size(count: float | None) -> str:
    """Return bytes in the unit that suits them."""
    if count is None:
        return NONE
    scale, name = unit(count)
    return f"{count:.0f} {name}" if scale == 1 else f"{number(count / scale)} {name}"


def unit(count: float) -> tuple[int, str]:
    """Return the unit of bytes that suits a count: how many they are, and its name."""
    return next(((scale, name) for scale, name in _SIZES if count >= scale), (1, "bytes"))


def milliseconds(value: float | None) -> str:
    return NONE if value is None else f"{number(value)} ms"


def usd(value: float | None) -> str:
    return NONE if value is None else f"{number(value)} USD"


def millions(value: float | None) -> str:
    return NONE if value is None else f"{number(value / 1e6, 4)} M"


def change(before: float, now: float) -> str:
    """Return how a figure moved: by which share of what it was, or by how much where it was zero."""
    if before == now:
        return "equal"
    if before == 0:
        return f"{now:+.3g}"
    moved = now / before - 1
    return f"{moved:+.1%}" if abs(moved) < 10 else f"{number(now / before)} times"


def counted(count: int, noun: str) -> str:
    """Return `1 reason`, `2 reasons`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def extremes(what: str, found: Sequence[tuple[str, float]], write: Callable[[float | None], str]) -> str:
    """Return the least and the greatest of named figures in a sentence."""
    low, high = min(found, key=lambda pair: pair[1]), max(found, key=lambda pair: pair[1])
    if low[1] == high[1]:
        return f"{what}: {write(low[1])} everywhere."
    return f"{what}: from {write(low[1])} ({low[0]}) to {write(high[1])} ({high[0]})."
