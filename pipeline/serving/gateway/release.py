"""The release a gateway serves: read from its channel, verified, kept through everything that goes wrong.

Rules: nothing is used before the consumers' rules accepted it; a new release that is refused, or a registry that is
gone, leaves the last good one in place, over restarts too, from a copy on disk that is verified like any other; the
copy is written before the release is remembered, so that no crash leaves a gateway without one; an expired release
serves nothing. The release before stays acceptable for a while, for servers change theirs one after the other. Where a
list says which releases servers may be on, those count instead of a channel's, each pinned by its digest, and all
alike: a new release is judged by its share of the requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from pipeline.catalog.names import Channel, Tier
from pipeline.errors import PipelineError, Refusal, RegistryError, StageError, TrustError
from pipeline.manifest import rules, statement
from pipeline.manifest.dsse import Opener
from pipeline.manifest.encoding import decode
from pipeline.manifest.rules import Accepted
from pipeline.peers.releases import MAX_BYTES, Listed, ReleaseList
from pipeline.ports import files
from pipeline.registry import consume, layout, record, state, verify
from pipeline.registry.pull import pull
from pipeline.registry.store import Store
from pipeline.serving.gateway.offers import Offers, offers

TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Source:
    """Where releases come from: a channel, whom it trusts, what was seen, and this gateway's own folder.

    `store` is opened at each use: a registry may be unreachable when the gateway starts. `listed` is a file that says
    which releases servers may be on, instead of the channel.
    """

    store: Callable[[], Store]
    opener: Opener
    line: str
    channel: Channel
    seen: Path
    folder: Path
    listed: Path | None = None


@dataclass(frozen=True)
class Held:
    """The release in use and the one before; `replaced` is when that was, `problem` why the newest is not in use.
    `also` are the others of a list.
    """

    current: Accepted | None = None
    before: Accepted | None = None
    replaced: datetime | None = None
    problem: str | None = None
    also: tuple[Accepted, ...] = ()

    def offers(self, now: datetime, grace: timedelta) -> Offers:
        """Return what endpoints may serve now: the current release, and for `grace` the one before."""
        recent = self.replaced is not None and now < self.replaced + grace
        before = offers(self.before, now, current=False) if recent else {}
        listed = {key: offered for other in self.also for key, offered in offers(other, now).items()}
        return {**before, **listed, **offers(self.current, now)}

    def knows(self, manifest_sha256: str) -> bool:
        """Return whether a manifest is held."""
        return any(release and release.digest == manifest_sha256 for release in (self.current, self.before, *self.also))

    @property
    def version(self) -> int:
        """The release's version, 0 without one."""
        return self.current.manifest.release.version if self.current else 0


def refresh(held: Held, source: Source, now: datetime) -> Held:
    """Return what is held after a look at the channel; whatever goes wrong is in `problem`, the release stays."""
    try:
        if source.listed is not None:
            return _all_listed(held, source, source.listed, now)
        accepted = _newer(held, source, now)
    except PipelineError as e:
        kept = held if held.current else _from_disk(source, now)
        return replace(kept, problem=e.message)
    if accepted is None:
        return replace(held, problem=None)
    return Held(accepted, held.current, now if held.current else None)


def _newer(held: Held, source: Source, now: datetime) -> Accepted | None:
    accepted = consume.newer(
        source.store(), opener=source.opener, line=source.line, channel=source.channel, seen=state.load(source.seen),
        now=now, held=held.current.digest if held.current else None,
    )  # fmt: skip
    if accepted is None:
        return None
    files.write(_copy(source), record.encode(accepted.bundles), mode=0o600)
    state.remember(source.seen, accepted)
    return accepted


def _all_listed(held: Held, source: Source, path: Path, now: datetime) -> Held:
    """Return the releases of a list; one that is refused is left out, and `problem` says why."""
    known = {release.digest: release for release in (held.current, *held.also) if release}
    wanted, found, problems = _read_list(path), list[Accepted](), list[str]()
    for entry in wanted:
        try:
            found.append(known.get(entry.manifest_sha256) or _by_version(entry, source, now))
        except PipelineError as e:
            problems.append(e.message)
    if not found:
        raise RegistryError("; ".join(problems), hint="deploy a release that verifies")
    if held.current is None or found[0].digest != held.current.digest:
        files.write(_copy(source), record.encode(found[0].bundles), mode=0o600)
        state.remember(source.seen, found[0], allow_rollback=True)
    return Held(found[0], problem="; ".join(problems) or None, also=tuple(found[1:]))


def _read_list(path: Path) -> list[Listed]:
    try:
        with path.open("rb") as f:
            data = f.read(MAX_BYTES)
    except OSError as e:
        raise StageError(f"{path}: {e.strerror}", hint="edge-release deploy writes it (docs/deploy.md)") from e
    return decode(data, ReleaseList, str(path)).releases


def _by_version(entry: Listed, source: Source, now: datetime) -> Accepted:
    found = consume.fetch(
        source.store(), opener=source.opener, line=source.line, seen=state.load(source.seen), now=now,
        version=entry.version, allow_rollback=True,
    )  # fmt: skip
    if found.digest != entry.manifest_sha256:
        raise TrustError(Refusal.SWAPPED, f"release {entry.version} has another manifest than the list says")
    return found


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
        return pull(source.store(), accepted, name, into).folder / wanted.name
    except RegistryError:
        folder, seen = into / "current", state.load(source.seen)
        verify.verify_folder(
            folder, opener=source.opener, line=source.line, seen=seen, now=now, variant=name, allow_rollback=True
        )
        return folder / wanted.name
