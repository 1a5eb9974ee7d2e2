"""The decision log: what was known, what was decided, and what was remembered, one round a line, to be replayed.

Rules: a file begins with the settings it was decided by, again after every change of them; a line is written before
anything of it is done; a file that is full is put aside, and only some are kept; a torn last line is what a crash
leaves, and is skipped. Format: docs/adr/0014.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from pipeline.catalog.document import check
from pipeline.control.actions import Actions
from pipeline.control.decide import decide
from pipeline.control.memory import Memory
from pipeline.control.settings import Settings
from pipeline.control.state import State
from pipeline.errors import CatalogError, StageError

FORMAT = 1


@dataclass(frozen=True)
class Round:
    """One decision: `leads` says whether its actions were this controller's to do."""

    now: float
    leads: bool
    state: State
    memory: Memory
    actions: Actions


@dataclass(frozen=True)
class Replayed:
    """One decision, made again: where it is not the same, `now_decided` is what comes out of it now."""

    line: int
    now: float
    decided: Actions
    now_decided: Actions

    @property
    def same(self) -> bool:
        """Whether the same comes out."""
        return self.decided == self.now_decided


_ROUND = TypeAdapter(Round)


@dataclass
class Log:
    """A log that is written; `path` is the newest file, `path.1` the one before it."""

    path: Path
    settings: Settings
    _file: BinaryIO | None = None

    def write(self, found: Round) -> None:
        """Add a round; raises StageError where the disk does not take it."""
        try:
            file = self._opened()
            file.write(_ROUND.dump_json(found) + b"\n")
            file.flush()
        except OSError as e:
            self.close()
            hint = "free space, or choose another folder with --state"
            raise StageError(f"cannot write {self.path}: {e.strerror}", hint=hint) from e

    def close(self) -> None:
        """Close the file; what the disk did not take is lost."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _opened(self) -> BinaryIO:
        if self._file is not None and self._file.tell() >= self.settings.acting.log_bytes:
            self.close()
            self._put_aside()
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            head = to_json({"format": FORMAT, "settings": self.settings.model_dump(mode="json")})
            self._file.write((b"\n" if self._file.tell() else b"") + head + b"\n")
        return self._file

    def _put_aside(self) -> None:
        kept = self.settings.acting.logs
        names = [self.path, *(self.path.with_name(f"{self.path.name}.{i + 1}") for i in range(kept))]
        for newer, older in reversed(list(pairwise(names))):
            if newer.exists():
                newer.replace(older)


def read(path: Path) -> Iterator[tuple[int, Settings, Round]]:
    """Yield a log's rounds by line, each with the settings it was decided by.

    Raises:
        CatalogError: the file cannot be read, or is no decision log.
    """
    settings: Settings | None = None
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as e:
        raise CatalogError(f"{path}: {e.strerror}", hint="name a decision log: decisions.jsonl in --state") from e
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            document = from_json(line)
            if "settings" in document:
                settings = check(document["settings"], Settings, f"{path}:{number}")
            elif settings is not None:
                yield number, settings, _ROUND.validate_json(line)
        except (ValueError, TypeError) as e:
            if _is_torn(lines, number):
                continue
            hint = "it was changed, or another version wrote it"
            raise CatalogError(f"{path}:{number}: no line of a decision log", hint=hint) from e
    if settings is None:
        raise CatalogError(f"{path} is no decision log", hint="name decisions.jsonl in the folder of --state")


def replay(path: Path) -> Iterator[Replayed]:
    """Decide every round of a log again; raises CatalogError as `read` does."""
    for number, settings, found in read(path):
        actions, _ = decide(found.state, found.memory, settings, found.now)
        yield Replayed(number, found.now, found.actions, actions)


def _is_torn(lines: list[bytes], number: int) -> bool:
    """Return whether a line is where a writer ended: the last one, or the one before a new beginning."""
    after = next((line for line in lines[number:] if line), b"")
    return not after or after.startswith(b'{"format"')


def told(value: Any) -> Any:
    """Return actions or a state as JSON has them."""
    return json.loads(to_json(value))
