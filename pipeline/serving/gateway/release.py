"""The release a gateway serves: read from its channel, verified, kept through everything that goes wrong.

Rules: nothing is used before the consumers' rules accepted it; a new release that is refused, or a registry that is
gone, leaves the last good one in place, over restarts too, from a copy on disk that is verified like any other; the
copy is written before the release is remembered, so that no crash leaves a gateway without one; an expired release
serves nothing. The release before stays acceptable for a while, for servers change theirs one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from pipeline.catalog.names import Channel, Tier
from pipeline.errors import PipelineError, RegistryError
from pipeline.manifest import rules, statement
from pipeline.manifest.dsse import Opener
from pipeline.manifest.rules import Accepted
from pipeline.ports import files
from pipeline.registry import consume, layout, record, state, verify
from pipeline.registry.pull import pull
from pipeline.registry.row import Row
from pipeline.registry.store import Store
from pipeline.serving.gateway.offers import Offers, offers

TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Source:
    """Where releases come from: a channel, whom it trusts, what was seen, and this gateway's own folder.

    `store` is opened at each use: a registry may be unreachable when the gateway starts.
    """

    store: Callable[[], Store]
    opener: Opener
    line: str
    channel: Channel
    seen: Path
    folder: Path


@dataclass(frozen=True)
class Held:
    """The release in use and the one before; `replaced` is when that was, `problem` why the newest is not in use."""

    current: Accepted | None = None
    before: Accepted | None = None
    replaced: datetime | None = None
    problem: str | None = None

    def offers(self, now: datetime, grace: timedelta) -> Offers:
        """Return what endpoints may serve now: the current release, and for `grace` the one before."""
        recent = self.replaced is not None and now < self.replaced + grace
        before = offers(self.before, now, current=False) if recent else {}
        return {**before, **offers(self.current, now)}

    @property
    def version(self) -> int:
        """The release's version, 0 without one."""
        return self.current.manifest.release.version if self.current else 0


def refresh(held: Held, source: Source, now: datetime) -> Held:
    """Return what is held after a look at the channel; whatever goes wrong is in `problem`, the release stays."""
    try:
        accepted = _newer(held, source, now)
    except PipelineError as e:
        kept = held if held.current else _from_disk(source, now)
        return replace(kept, problem=e.message)
    if accepted is None:
        return replace(held, problem=None)
    return Held(accepted, held.current, now if held.current else None)


def _newer(held: Held, source: Source, now: datetime) -> Accepted | None:
    store, seen = source.store(), state.load(source.seen)
    found = Row(store, source.opener, source.line, source.channel).latest(seen)
    if found and held.current and found[0].manifest_sha256 == held.current.digest:
        return None
    accepted = consume.fetch(store, opener=source.opener, line=source.line, seen=seen, now=now, channel=source.channel)
    files.write(_copy(source), record.encode(accepted.bundles), mode=0o600)
    state.remember(source.seen, accepted)
    return accepted


def _from_disk(source: Source, now: datetime) -> Held:
    try:
        with _copy(source).open("rb") as f:
            bundles = record.decode(f.read(layout.MAX_RECORD))
        version = statement.parse(source.opener(bundles.manifest).payload).release.version
        seen = state.load(source.seen)
        accepted = rules.accept_release(
            bundles, opener=source.opener, line=source.line, version=version, seen=seen, now=now
        )
    except (OSError, PipelineError):
        return Held()
    return Held(accepted)


def _copy(source: Source) -> Path:
    return source.folder / record.FILE


def tokenizer(source: Source, accepted: Accepted, now: datetime) -> Path:
    """Return the GGUF file whose vocabulary counts tokens, pulled and verified: the smallest tiny-edge variant's.

    Raises:
        RegistryError: the release has none, or the registry went away and none was pulled before.
        TrustError, StageError: as `pull` and `verify_folder`.
    """
    sizes = {
        entry.name: file.size
        for entry in accepted.manifest.predicate.variants
        if entry.tier is Tier.TINY_EDGE and entry.format == "gguf" and (file := entry.model_file)
    }
    if not sizes:
        raise RegistryError(
            "the release has no tiny-edge variant in GGUF", hint="publish one: tokens are counted by it"
        )
    name, into = min(sizes, key=lambda n: (sizes[n], n)), source.folder / TOKENIZER
    wanted = accepted.manifest.variant(name).model_file
    assert wanted is not None, "it is among the sizes"
    try:
        return pull(source.store(), accepted, name, into) / wanted.name
    except RegistryError:
        folder, seen = into / "current", state.load(source.seen)
        verify.verify_folder(
            folder, opener=source.opener, line=source.line, seen=seen, now=now, variant=name, allow_rollback=True
        )
        return folder / wanted.name
