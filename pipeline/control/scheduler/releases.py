"""The releases that pods name, verified, and the one a channel points to.

Rules: nothing is used before the consumers' rules accepted it; what was refused or is out of reach is told, and not
asked for again at once; of a channel the last good release stays. A release that a pod pins by its manifest's digest
may be older than one that was seen: whoever deployed it decided that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pipeline.catalog.names import Channel, RunnerClass
from pipeline.control.scheduler.needs import Release, read
from pipeline.control.scheduler.pods import Wanted
from pipeline.control.scheduler.rules import Refusal, Why
from pipeline.errors import PipelineError
from pipeline.manifest.dsse import Opener
from pipeline.manifest.rules import Accepted
from pipeline.registry import consume, state
from pipeline.registry.store import Store

_KEPT = 16  # releases that pods named
_AGAIN_S = 10.0  # after which one that could not be had is asked for again

_Pin = tuple[int, str | None]


@dataclass(frozen=True)
class Source:
    """Where releases come from, whom they are trusted from, by runner class for evidence, and what was seen.

    `store` is opened at each use: a registry may be unreachable when the extender starts.
    """

    store: Callable[[], Store]
    opener: Opener
    evidence: Callable[[RunnerClass], Opener]
    line: str
    channel: Channel
    seen: Path


@dataclass
class Releases:
    """What is known; `now` gives the time by which releases expire, `clock` seconds that never run back."""

    source: Source
    now: Callable[[], datetime]
    clock: Callable[[], float]
    current: Release | None = None
    problem: str | None = None
    _named: OrderedDict[_Pin, Release] = field(default_factory=OrderedDict)
    _failed: OrderedDict[_Pin, tuple[float, str]] = field(default_factory=OrderedDict)

    def look(self) -> None:
        """Read where the channel points, and verify what is there; whatever goes wrong is in `problem`."""
        try:
            accepted = self._newer()
        except PipelineError as e:
            self.problem = e.message
            return
        self.problem = None
        if accepted is not None:
            self.current = read(accepted, self.source.evidence)
            state.remember(self.source.seen, accepted)

    def known(self, wanted: Wanted) -> Release | Refusal | None:
        """Return a pod's release, why it cannot be had, or None where it was not looked for yet."""
        if wanted.version is None:
            return self.current or Refusal(Why.RELEASE, self.problem or "the channel was not read yet")
        current, pin = self.current, (wanted.version, wanted.manifest)
        if current is not None and wanted.version == current.version and wanted.manifest in {None, current.digest}:
            return current
        if pin in self._named:
            return self._named[pin]
        at, why = self._failed.get(pin, (float("-inf"), ""))
        return Refusal(Why.RELEASE, why) if self.clock() < at + _AGAIN_S else None

    def find(self, wanted: Wanted) -> None:
        """Fetch and verify the release that a pod names; `known` tells what came of it."""
        assert wanted.version is not None, "a pod without a version has the channel's"
        pin = (wanted.version, wanted.manifest)
        try:
            accepted = self._fetch(wanted.version, pinned=wanted.manifest is not None)
        except PipelineError as e:
            _keep(self._failed, pin, (self.clock(), e.message))
            return
        if wanted.manifest not in {None, accepted.digest}:
            why = f"release {wanted.version} has another manifest than the pod names"
            _keep(self._failed, pin, (self.clock(), why))
            return
        _keep(self._named, pin, read(accepted, self.source.evidence))

    def _fetch(self, version: int, *, pinned: bool) -> Accepted:
        source = self.source
        return consume.fetch(
            source.store(), opener=source.opener, line=source.line, seen=state.load(source.seen), now=self.now(),
            version=version, allow_rollback=pinned,
        )  # fmt: skip

    def _newer(self) -> Accepted | None:
        source, held = self.source, self.current.digest if self.current else None
        return consume.newer(
            source.store(), opener=source.opener, line=source.line, channel=source.channel,
            seen=state.load(source.seen), now=self.now(), held=held,
        )  # fmt: skip


def _keep(kept: OrderedDict, pin: _Pin, value: object) -> None:  # type: ignore[type-arg]
    kept[pin] = value
    while len(kept) > _KEPT:
        kept.popitem(last=False)
