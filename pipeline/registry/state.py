"""What this machine has seen of a release line, kept where no registry can write.

Rules: written whole or not at all, readable by its owner alone; never reset because it cannot be read; several
processes may remember at once, and what is remembered of a channel only moves forward, except by an allowed rollback.

A file of schema 1 has one version for all channels. So that nothing is forgotten, it counts for each channel that the
file knows and for releases asked for by version; a channel that stands below it needs an allowed rollback once.
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
from pipeline.manifest.encoding import Count, Record, Sha256, decode
from pipeline.manifest.names import safe_name
from pipeline.manifest.rules import BY_VERSION, Accepted, Last, Seen, check_same
from pipeline.ports import files

MAX_STATE = 1 << 20


class _Release(Record):
    version: Annotated[int, Field(ge=1)]
    digest: Sha256


class _Stored(Record):
    schema_version: Literal[2] = 2
    releases: dict[str, _Release]
    serials: dict[str, Count]
    pointers: dict[str, str]
    time: Annotated[float, Field(ge=0)]

    def seen(self) -> Seen:
        releases = {slot: Last(last.version, last.digest) for slot, last in self.releases.items()}
        return Seen(releases, self.serials, self.pointers, self.time)


class _Stored1(_Release):
    schema_version: Literal[1] = 1
    serials: dict[str, Count]
    pointers: dict[str, str]
    time: Annotated[float, Field(ge=0)]

    def seen(self) -> Seen:
        releases = dict.fromkeys([*self.serials, BY_VERSION], Last(self.version, self.digest))
        return Seen(releases, self.serials, self.pointers, self.time)


class _AnyStored(Record):
    schema_version: Literal[1, 2]


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
        allow_rollback: the user knows that the version may be older than one seen and means it.

    Raises:
        TrustError: EQUIVOCATION, when another process saw the same version or serial with other content meanwhile;
            MALFORMED, as `load`.
        StageError: the file cannot be written.
    """
    with _locked(path):
        merged = _merge(load(path), accepted, allow_rollback=allow_rollback)
        files.write(path, _Stored.model_validate(asdict(merged)).encode(), mode=0o600)
    return merged


def _merge(old: Seen, accepted: Accepted, *, allow_rollback: bool) -> Seen:
    new, slot, pointer = accepted.seen, accepted.slot, accepted.pointer
    serials = {c: max(old.serials.get(c, 0), new.serials.get(c, 0)) for c in {*old.serials, *new.serials}}
    pointers = {**new.pointers, **{c: d for c, d in old.pointers.items() if serials[c] == old.serials.get(c)}}
    _check_equal(old, new)
    is_last_word = pointer is not None and accepted.rolled_back and pointer.serial >= serials[slot]
    releases = {**new.releases, **old.releases}
    if allow_rollback or is_last_word or new.releases[slot].version >= releases[slot].version:
        releases[slot] = new.releases[slot]
    return Seen(releases, serials, pointers, max(old.time, new.time))


def _check_equal(old: Seen, new: Seen) -> None:
    for last in new.releases.values():
        check_same(last, old)
    for channel, serial in old.serials.items():
        if new.serials.get(channel) == serial and new.pointers[channel] != old.pointers.get(channel):
            raise TrustError(Refusal.EQUIVOCATION, f"channel {channel} has two different pointers with serial {serial}")


def _parsed(path: Path, data: bytes) -> Seen:
    try:
        version = decode(data, _AnyStored, str(path)).schema_version
        stored = decode(data, _Stored1, str(path)) if version == 1 else decode(data, _Stored, str(path))
        seen = stored.seen()
        if len(data) > MAX_STATE or set(seen.serials) != set(seen.pointers):
            raise TrustError(Refusal.MALFORMED, f"{path}: not what was written there")
    except TrustError as e:
        raise TrustError(
            Refusal.MALFORMED,
            f"what was seen before cannot be read: {e.message}",
            hint=f"restore {path} from a backup; removing it gives up the protection against rollbacks once",
        ) from e
    return seen


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
