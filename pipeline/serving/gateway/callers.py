"""Who may ask: API keys, hashed in a file, each with a rate and a priority.

Rules: a key is random and long, so a plain SHA-256 of it is safe to keep; the file is read again when it changed, and
one that is not as it must be leaves the last good one in place; without a file everyone may ask.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from pipeline.catalog.document import Document, parse_yaml
from pipeline.errors import CatalogError
from pipeline.ports import files
from pipeline.serving.decision import Priority
from pipeline.serving.gateway.problems import Problem

PREFIX = "edge-"
_BEARER = b"bearer "


class KeyEntry(Document):
    """One key."""

    name: Annotated[str, Field(min_length=1, max_length=63, description="who has it, shown in logs")]
    sha256: Annotated[
        str, Field(pattern=r"^[0-9a-f]{64}$", description="of the key, in hex; `edge-release gateway-key` writes it")
    ]
    priority: Annotated[Priority, Field(description="`batch`: whatever it asks is batch")] = Priority.INTERACTIVE
    requests_per_minute: Annotated[float | None, Field(gt=0, description="none: no limit")] = None
    burst: Annotated[int, Field(ge=1, description="requests at once before the rate counts")] = 10


class KeyFile(Document):
    """`keys.yaml`."""

    keys: Annotated[list[KeyEntry], Field(max_length=100_000)]


@dataclass
class Caller:
    """A key in use, with a bucket that fills at its rate; `at` is when it was last filled, in seconds."""

    entry: KeyEntry
    tokens: float = 0.0
    at: float | None = None

    def take(self, now: float) -> float:
        """Take a request from the bucket; return the seconds to wait where there is none, else 0."""
        rate = self.entry.requests_per_minute
        if rate is None:
            return 0.0
        filled = self.entry.burst if self.at is None else self.tokens + (now - self.at) * rate / 60
        self.at, self.tokens = now, min(filled, self.entry.burst)
        if self.tokens < 1:
            return (1 - self.tokens) * 60 / rate
        self.tokens -= 1
        return 0.0


@dataclass
class Callers:
    """Everyone who may ask; None of `path` means everyone may."""

    path: Path | None
    clock: Callable[[], float]
    known: dict[str, Caller] = field(default_factory=dict)
    _stamp: tuple[int, int] = (0, 0)

    def reload(self) -> None:
        """Read the file where it changed; raises CatalogError, and keeps what was read before."""
        if self.path is None or (stamp := _stamp(self.path)) == self._stamp:
            return
        found = files.load(self.path, _parse).keys
        kept = {caller.entry.sha256: caller for caller in self.known.values()}
        fresh = {e.sha256: Caller(e) for e in found}
        self.known = {d: kept[d] if d in kept and kept[d].entry == c.entry else c for d, c in fresh.items()}
        self._stamp = stamp

    def admit(self, headers: dict[bytes, bytes]) -> KeyEntry | None:
        """Return the key a request comes with, None where none is asked for.

        Raises:
            Problem: 401 without a known key, 429 beyond its rate.
        """
        if self.path is None:
            return None
        given = headers.get(b"authorization", b"")
        digest = hashlib.sha256(given[len(_BEARER) :]).hexdigest() if given.lower().startswith(_BEARER) else ""
        caller = self.known.get(digest)
        if caller is None:
            raise Problem(
                401, "invalid_api_key", "no known API key; give one as a bearer token", "authentication_error"
            )
        if wait := caller.take(self.clock()):
            raise Problem(
                429, "rate_limit_exceeded", "the key's rate is used up", "rate_limit_error", retry_after_s=ceil(wait)
            )
        return caller.entry


def add_key(path: Path, name: str, *, priority: Priority, rate: float | None) -> str:
    """Make a key, add its hash to a file, and return it: it is kept nowhere.

    Raises:
        CatalogError: the file is not as it must be, or has a key of that name.
        StageError: it cannot be written.
    """
    known = files.load(path, _parse).keys if path.exists() else []
    if name in {entry.name for entry in known}:
        raise CatalogError(f"{path} has a key named {name}", hint="take another name, or remove the old key first")
    key = PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    entry = KeyEntry(name=name, sha256=digest, priority=priority, requests_per_minute=rate)
    document = {"keys": [e.model_dump(mode="json", exclude_defaults=True) for e in (*known, entry)]}
    files.write(path, yaml.safe_dump(document, sort_keys=False).encode(), mode=0o600)
    return key


def _parse(text: str, name: str) -> KeyFile:
    return parse_yaml(text, KeyFile, name)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        info = path.stat()
    except OSError as e:
        raise CatalogError(f"{path}: {e.strerror}", hint="name the file of API keys, or start without --keys") from e
    return info.st_mtime_ns, info.st_ino
