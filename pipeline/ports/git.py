"""What git knows of the project folder."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import ConflictError, ToolError
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


def is_work_tree(source: str) -> bool:
    """Return whether a source is a folder with files of a repository, not a bare one or one elsewhere."""
    if not Path(source).is_dir():
        return False
    try:
        return _git(Path(source), "rev-parse", "--is-inside-work-tree").strip() == "true"
    except ToolError:
        return False


def fetch(source: str, into: Path, branch: str | None = None) -> None:
    """Clone a branch, or the one that HEAD names, from a folder or an address into a new folder."""
    wanted = ["--branch", branch] if branch else []
    hint = "check the repository's address, its branch, and who may read it"
    process.run(["git", "clone", "--quiet", "--depth=1", "--no-local", *wanted, "--", source, into], hint=hint)


def commit_folder(root: Path, folder: str, message: str) -> str | None:
    """Commit what changed below a folder, and nothing else; return the commit, None where nothing changed."""
    _git(root, "add", "--all", "--", folder)
    if not _git(root, "status", "--porcelain", "--", folder).strip():
        return None
    # Signing is left to what the user configured; an author is named where none is.
    known = all(_has(root, f"user.{what}") for what in ("name", "email"))
    nobody = ["-c", "user.name=edge-release", "-c", "user.email=edge-release@localhost"]
    _git(root, *([] if known else nobody), "commit", "--quiet", f"--message={message}", "--", folder)
    return commit(root)


def push(root: Path) -> None:
    """Push HEAD to where it was cloned from; raises ConflictError where somebody pushed meanwhile."""
    try:
        branch = _git(root, "symbolic-ref", "--short", "HEAD").strip()
        _git(root, "-c", "advice.pushUpdateRejected=false", "push", "--quiet", "origin", f"HEAD:refs/heads/{branch}")
    except ToolError as e:
        if any(word in e.message for word in ("[rejected]", "[remote rejected]", "cannot lock ref")):
            raise ConflictError("somebody pushed meanwhile", hint="run it again") from e
        raise ToolError(e.message, hint="check who may push there") from e


def _has(root: Path, name: str) -> bool:
    try:
        return bool(_git(root, "config", "--get", name).strip())
    except ToolError:
        return False


def _git(root: Path, *args: str) -> str:
    return process.run(["git", "-C", root, *args], hint=_HINT)
