"""What git knows of the project folder."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.ports import process

_HINT = "a release is made from a commit: run this in a git clone, with at least one commit"


def commit(root: Path) -> str:
    """Return the full hash of HEAD; raises ToolError outside a repository."""
    return _git(root, "rev-parse", "--verify", "HEAD").strip()


def commit_time(root: Path) -> datetime:
    """Return `SOURCE_DATE_EPOCH` where it is set, else the time of HEAD (UTC).

    Source: https://reproducible-builds.org/specs/source-date-epoch/.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH") or _git(root, "show", "--no-patch", "--format=%ct", "HEAD").strip()
    try:
        return datetime.fromtimestamp(int(text), UTC)
    except (ValueError, OverflowError, OSError) as e:
        raise ToolError(f"SOURCE_DATE_EPOCH is {text!r}", hint="set it to seconds since 1970, or unset it") from e


def modified(root: Path, *, ignore: frozenset[str]) -> list[str]:
    """Return the files that differ from HEAD or are not known to it, sorted; ignored files do not count."""
    changed = _git(root, "diff", "--name-only", "-z", "HEAD", "--")
    unknown = _git(root, "ls-files", "--others", "--exclude-standard", "-z")
    return sorted({name for name in (changed + unknown).split("\0") if name} - ignore)


def clone(root: Path, into: Path) -> None:
    """Clone the repository of `root` at its HEAD into a new folder."""
    _git(root, "clone", "--quiet", "--no-hardlinks", str(root.resolve()), str(into))


def _git(root: Path, *args: str) -> str:
    return process.run(["git", "-C", root, *args], hint=_HINT)
