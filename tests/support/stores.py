"""Stores for tests: each wraps a real one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.registry.store import Progress, Store


@dataclass
class Hooked:
    """A store that calls `before` and `after` with each writing or opening call's name, and keeps a list of calls."""

    inner: Store
    before: Callable[[str], None] = lambda _: None
    after: Callable[[str], None] = lambda _: None
    calls: list[str] = field(default_factory=list)
    stream: Callable[[BinaryIO], BinaryIO] = lambda f: f

    @property
    def url(self) -> str:
        return self.inner.url

    def put_blob(self, digest: str, source: Path, progress: Progress) -> bool:
        return bool(self._around("put_blob", lambda: self.inner.put_blob(digest, source, progress)))

    def blob_size(self, digest: str) -> int | None:
        return self.inner.blob_size(digest)

    @contextmanager
    def open_blob(self, digest: str, offset: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        self._enter(f"open_blob {offset}" + ("" if length is None else f" {length}"))
        with self.inner.open_blob(digest, offset, length) as f:
            yield self.stream(f)

    def create(self, name: str, data: bytes) -> None:
        self._around(f"create {name.partition('/')[0]}", lambda: self.inner.create(name, data))

    def read(self, name: str, limit: int) -> bytes | None:
        return self.inner.read(name, limit)

    def names(self, prefix: str, after: str = "") -> list[str]:
        return self.inner.names(prefix, after)

    def _enter(self, call: str) -> None:
        self.calls.append(call)
        self.before(call)

    def _around(self, call: str, run: Callable[[], Any]) -> Any:
        self._enter(call)
        result = run()
        self.after(call)
        return result


class Stopping:
    """A stream that gives `count` bytes in small pieces and then calls `stop`."""

    def __init__(self, inner: BinaryIO, count: int, stop: Callable[[], None]) -> None:
        self._inner = inner
        self._left = count
        self._stop = stop

    def readinto(self, buffer: memoryview) -> int:
        if not self._left:
            self._stop()
            return 0
        data = self._inner.read(min(len(buffer), self._left, 512))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


def kill_self() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def killing(inner: Store, point: str) -> Hooked:
    """Return a store that kills this process at a point.

    Args:
        point: `before 3` or `after 3` (the third writing call), `stream 1000` (so many bytes of a file), or `never`.
    """
    kind, _, number = point.partition(" ")
    store = Hooked(inner)

    def strike(_: str) -> None:
        if len(store.calls) == int(number):
            kill_self()

    if kind == "before":
        store.before = strike
    elif kind == "after":
        store.after = strike
    elif kind == "stream":
        store.stream = lambda f: Stopping(f, int(number), kill_self)  # type: ignore[assignment,return-value]
    return store
