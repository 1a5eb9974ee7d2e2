"""Names of files in a release: relative, plain ASCII, without anything a file system or shell reads twice."""

from __future__ import annotations

import re

from pipeline.errors import Refusal, TrustError

_COMPONENT = re.compile(r"[A-Za-z0-9._+@=-]{1,200}")
MAX_NAME = 1000


def safe_name(name: str) -> str:
    """Return `name` unchanged if it is safe to create below a folder.

    Raises:
        TrustError: UNSAFE_NAME, for absolute names, `..`, backslashes, drive letters, control and non-ASCII characters.
    """
    parts = name.split("/") if len(name) <= MAX_NAME else []
    if not parts or any(part in {".", ".."} or not _COMPONENT.fullmatch(part) for part in parts):
        raise TrustError(Refusal.UNSAFE_NAME, f"unsafe file name {name[:80]!r}")
    return name
