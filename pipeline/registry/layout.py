"""Names of objects in a registry.

    blobs/sha256/<hex>                          a file, by its digest
    releases/<line>/<version>.json              a release: all its signed statements in one object
    channels/<line>/<channel>/<serial>.json     one move of a channel; the highest serial counts

Rules: versions and serials have ten digits, so that names sort as numbers do; a line or channel is one plain word, so
that no name leaves its place; a name that does not fit the scheme is no release and no move.
"""

from __future__ import annotations

import re

from pipeline.errors import Refusal, TrustError

MAX_RECORD = 32 << 20
MAX_POINTER = 256 << 10
BLOBS = "blobs/sha256"

_WORD = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NUMBERED = re.compile(r"([0-9]{10})\.json")


def blob(digest: str) -> str:
    """Return the name of the file with this digest."""
    if not _DIGEST.fullmatch(digest):
        raise TrustError(Refusal.UNSAFE_NAME, f"{digest[:80]!r} is not a SHA-256 digest")
    return f"{BLOBS}/{digest}"


def releases(line: str) -> str:
    """Return the prefix of a line's releases."""
    return f"releases/{_word(line)}/"


def release(line: str, version: int) -> str:
    """Return the name of one release."""
    return f"{releases(line)}{_number(version)}.json"


def channels(line: str) -> str:
    """Return the prefix of a line's channels."""
    return f"channels/{_word(line)}/"


def row(line: str, channel: str) -> str:
    """Return the prefix of one channel's moves."""
    return f"{channels(line)}{_word(channel)}/"


def pointer(line: str, channel: str, serial: int) -> str:
    """Return the name of one move of a channel."""
    return f"{row(line, channel)}{_number(serial)}.json"


def numbers(names: list[str], prefix: str) -> list[int]:
    """Return the versions or serials that stand directly below a prefix, ascending."""
    found = (_NUMBERED.fullmatch(name.removeprefix(prefix)) for name in names)
    return sorted(int(match[1]) for match in found if match)


def _number(value: int) -> str:
    if not 0 < value < 10**10:
        raise TrustError(Refusal.MALFORMED, "a version or serial has at most ten digits")
    return f"{value:010d}"


def _word(name: str) -> str:
    if not _WORD.fullmatch(name):
        raise TrustError(
            Refusal.UNSAFE_NAME,
            f"unsafe name {name[:80]!r} of a release line or channel",
            hint="use lower-case letters, digits, '.', '_' and '-', at most 63",
        )
    return name
