"""What this machine has seen of a release line, kept where no registry can write.

Rules: written whole or not at all, readable by its owner alone; never reset because it cannot be read; several
processes may remember at once, and what is remembered only moves forward, except by an allowed rollback.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.errors import Refusal, StageError, TrustError
from pipeline.manifest.encoding import Count, Record, decode
from pipeline.manifest.names import safe_name
from pipeline.manifest.rules import Accepted, Seen
from pipeline.ports import files

MAX_STATE = 1 << 20


class _Stored(Record):
    schema_version: Literal[1] = 1
    version: Count
    digest: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    serials: dict[str, Count]
    pointers: dict[str, str]
    time: Annotated[float, Field(ge=0)]


def default_path(line: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Return where a line's state is kept: `$XDG_STATE_HOME/edge-release/<line>.json`."""
    base = environ.get("XDG_STATE_HOME", "")
    folder = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return folder / "edge-release" / f"{safe_name(line)}.json"


def load(path: Path) -> Seen:
    """Return what was seen; nothing where the file does not exist yet.

    Raises:
        TrustError: MALFORMED, when the file is damaged.
        StageError: it cannot be read.
    """
    try:
        with path.open("rb") as f:
            data = f.read(MAX_STATE + 1)
    except FileNotFoundError:
        return Seen()
    except OSError as e:
        raise _unusable(path, e) from e
    return _parsed(path, data)


def remember(path: Path, accepted: Accepted, *, allow_rollback: bool = False) -> Seen:
    """Add an accepted release to what was seen, and return what is remembered now.

    Args:
        allow_rollback: the user named an older version and means it.

    Raises:
        TrustError: EQUIVOCATION, when another process saw the same version or serial with other content meanwhile;
            MALFORMED, as `load`.
        StageError: the file cannot be written.
    """
    with _locked(path):
        merged = _merge(load(path), accepted, allow_rollback=allow_rollback)
        files.write(path, _Stored(**asdict(merged)).encode(), mode=0o600)
    return merged


def _merge(old: Seen, accepted: Accepted, *, allow_rollback: bool) -> Seen:
    new = accepted.seen
    serials = {c: max(old.serials.get(c, 0), new.serials.get(c, 0)) for c in {*old.serials, *new.serials}}
    pointers = {**new.pointers, **{c: d for c, d in old.pointers.items() if serials[c] == old.serials.get(c)}}
    _check_equal(old, new)
    pointer = accepted.pointer
    is_last_word = pointer is not None and pointer.rollback and pointer.serial >= serials[pointer.channel]
    ahead = new.version >= old.version or allow_rollback or is_last_word
    chosen = new if ahead else old
    return Seen(chosen.version, chosen.digest, serials, pointers, max(old.time, new.time))


def _check_equal(old: Seen, new: Seen) -> None:
    if old.version == new.version and old.digest != new.digest:
        raise TrustError(Refusal.EQUIVOCATION, f"release {old.version} was seen with two different contents")
    for channel, serial in old.serials.items():
        if new.serials.get(channel) == serial and new.pointers[channel] != old.pointers.get(channel):
            raise TrustError(Refusal.EQUIVOCATION, f"channel {channel} has two different pointers with serial {serial}")


def _parsed(path: Path, data: bytes) -> Seen:
    try:
        stored = decode(data, _Stored, str(path))
        if len(data) > MAX_STATE or set(stored.serials) != set(stored.pointers):
            raise TrustError(Refusal.MALFORMED, f"{path}: not what was written there")
    except TrustError as e:
        raise TrustError(
            Refusal.MALFORMED,
            f"what was seen before cannot be read: {e.message}",
            hint=f"restore {path} from a backup; removing it gives up the protection against rollbacks once",
        ) from e
    return Seen(stored.version, stored.digest, stored.serials, stored.pointers, stored.time)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as e:
        raise _unusable(path, e) from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _unusable(path: Path, error: OSError) -> StageError:
    return StageError(f"{path}: {error.strerror}", hint="set XDG_STATE_HOME to a folder of yours, or name another file")
