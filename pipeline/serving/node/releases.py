"""The releases a node may run: where the channel points, or one by its version, and what lies on the disk.

    HOME/model/      the variant, as `edge-release pull` lays it out
    HOME/runtime/    the programs of its target, likewise; a large variant needs none

Rules: a release is brought beside the one in use, and the disk leads to it only once it answered right (`keep`); what
is on the disk is verified again before every start; model and programs are always of one release. A release that is
pinned by its manifest's digest may be older than what was seen: whoever pinned it means that very one.

Power may go at any point. The model's link decides which release is kept; the programs' folder of the same version lies
there as long, because it is one of the two that are kept. What was seen is remembered before the links move back, and
after they moved forward, so that the release on the disk is never older than what is remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from pipeline.catalog.golden import parse_golden
from pipeline.catalog.names import Channel
from pipeline.errors import PipelineError, Refusal, TrustError
from pipeline.manifest.dsse import Opener
from pipeline.manifest.evidence import File
from pipeline.manifest.rules import Accepted, Seen
from pipeline.manifest.statement import GOLDEN, VariantEntry, runtime_name
from pipeline.registry import activate, beneath, consume, pull, state, verify
from pipeline.registry.pull import Pulled
from pipeline.registry.store import Progress, Store, silent
from pipeline.serving.node.probe import Question, questions
from pipeline.serving.node.state import Pin

MODEL, RUNTIME = "model", "runtime"
SERVER = "llama-server"

Clock = Callable[[], datetime]
# Raises TrustError where the evidence that is required is missing.
Proof = Callable[[Accepted], None]


@dataclass(frozen=True)
class Held:
    """A release on the disk, verified: the variant's folder, and the programs' where it is a GGUF.

    `fetched` and `reused` are the bytes that came from the registry for it, and those that were on the disk already.
    """

    accepted: Accepted
    entry: VariantEntry
    model: Path
    runtime: Path | None
    fetched: int = 0
    reused: int = 0

    @property
    def pin(self) -> Pin:
        return Pin(self.accepted.manifest.release.version, self.accepted.digest)

    @property
    def weights(self) -> Path:
        """The model file: a GGUF, or the shards' layout."""
        return self.model / self._file.name

    @property
    def golden(self) -> Path:
        """The golden prompts."""
        return self.model / GOLDEN

    @property
    def questions(self) -> tuple[Question, ...]:
        """What a server is asked before it serves; raises PipelineError, OSError and UnicodeDecodeError."""
        return questions(parse_golden(self.golden.read_text(encoding="utf-8"), self.golden.name), self.entry)

    @property
    def server(self) -> Path:
        """The program that serves a GGUF."""
        assert self.runtime is not None, "a GGUF variant has its target's programs"
        return self.runtime / SERVER

    @property
    def model_sha256(self) -> str:
        """The digest of the model file, as signed."""
        return self._file.sha256

    @property
    def _file(self) -> File:
        found = self.entry.model_file
        assert found is not None, "a variant has one file by which it is known"
        return found


class Releases(Protocol):
    """What a node asks of its releases; every method raises PipelineError."""

    def kept(self) -> Held | None:
        """Return what the disk leads to, verified again; None where it leads nowhere."""
        ...

    def newest(self) -> Held:
        """Return what the channel points to, brought onto the disk and verified."""
        ...

    def again(self, held: Held) -> Held:
        """Return a release that is on the disk, verified again."""
        ...

    def keep(self, held: Held) -> None:
        """Let the disk lead to a release, and remember that it was seen."""
        ...


def never(_accepted: Accepted) -> None:
    """Require no evidence beyond what the channel did."""


@dataclass(frozen=True)
class Wanted:
    """One release by its version, and by its manifest's digest where that is given."""

    version: int
    digest: str | None = None

    def check(self, accepted: Accepted) -> Accepted:
        """Return a release if it is this one; raises TrustError."""
        version = accepted.manifest.release.version
        if version != self.version or self.digest not in {None, accepted.digest}:
            raise TrustError(
                Refusal.SWAPPED, f"release {version} has manifest {accepted.digest[:16]}…, another one is pinned"
            )
        return accepted


def silently(_line: str) -> None:
    """Say nothing."""


@dataclass
class ChannelReleases:
    """The releases of a channel, or only the one that is `wanted`, in a registry and below a folder.

    `say` is told what was fetched, a line each.
    """

    store: Store
    opener: Opener
    line: str
    channel: Channel
    variant: str
    home: Path
    seen: Path
    proof: Proof = never
    wanted: Wanted | None = None
    progress: Progress = silent
    say: Callable[[str], None] = silently
    clock: Clock = field(default=lambda: datetime.now(UTC))
    _brought: Held | None = field(default=None, init=False)

    def kept(self) -> Held | None:
        version = _active(self.home / MODEL)
        if version is None or (self.wanted and version != self.wanted.version):
            return None
        return self._verified(version, state.load(self.seen))

    def newest(self) -> Held:
        accepted = self._fetch()
        self.proof(accepted)
        if self._brought is not None and self._brought.accepted.digest == accepted.digest:
            return self._brought
        entry = _entry(accepted, self.variant)
        pulled = [self._stage(accepted, self.variant, MODEL)]
        if _has_programs(entry):
            pulled.append(self._stage(accepted, runtime_name(entry.target), RUNTIME))
        model, programs = pulled[0].folder, pulled[1].folder if len(pulled) > 1 else None
        fetched, reused = sum(p.fetched for p in pulled), sum(p.reused for p in pulled)
        self._brought = Held(accepted, entry, model, programs, fetched, reused if fetched else 0)
        return self._brought

    def again(self, held: Held) -> Held:
        try:
            # What was accepted says of itself what was seen: the channel may have gone back to it just now.
            self._verified(held.pin.version, held.accepted.seen)
        except PipelineError:
            self._brought = None  # what the registry has mends it at the next look
            raise
        return held

    def keep(self, held: Held) -> None:
        version, back = held.pin.version, _active(self.home / MODEL)
        moved_back = back is not None and version < back
        if moved_back:
            state.remember(self.seen, held.accepted, allow_rollback=self._may_be_older)
        if held.runtime is not None:
            pull.use(self.home / RUNTIME, version)
        pull.use(self.home / MODEL, version)
        if not moved_back:
            state.remember(self.seen, held.accepted, allow_rollback=self._may_be_older)

    @property
    def _may_be_older(self) -> bool:
        return self.wanted is not None and self.wanted.digest is not None

    def _fetch(self) -> Accepted:
        seen, now = state.load(self.seen), self.clock()
        if self.wanted is None:
            return consume.fetch(
                self.store, opener=self.opener, line=self.line, seen=seen, now=now, channel=self.channel
            )
        accepted = consume.fetch(
            self.store, opener=self.opener, line=self.line, seen=seen, now=now, version=self.wanted.version,
            allow_rollback=self._may_be_older,
        )  # fmt: skip
        return self.wanted.check(accepted)

    def _stage(self, accepted: Accepted, name: str, place: str) -> Pulled:
        pulled = pull.stage(self.store, accepted, name, self.home / place, self.progress)
        for line in (*pulled.whole, *_moved(accepted, name, pulled)):
            self.say(line)
        return pulled

    def _verified(self, version: int, seen: Seen) -> Held:
        model, runtime = (self.home / place / activate.VERSIONS / str(version) for place in (MODEL, RUNTIME))
        accepted = self._folder(model, self.variant, seen)
        entry = _entry(accepted, self.variant)
        if not _has_programs(entry):
            self.proof(accepted)
            return Held(accepted, entry, model, None)
        programs = self._folder(runtime, runtime_name(entry.target), seen)
        if programs.digest != accepted.digest:
            raise TrustError(Refusal.MIXED, f"{runtime} and {model} are of different releases")
        self.proof(accepted)
        return Held(accepted, entry, model, runtime)

    def _folder(self, folder: Path, name: str, seen: Seen) -> Accepted:
        accepted = verify.verify_folder(
            folder, opener=self.opener, line=self.line, seen=seen, now=self.clock(), variant=name,
            allow_rollback=self._may_be_older,
        )  # fmt: skip
        return self.wanted.check(accepted) if self.wanted else accepted


def _active(into: Path) -> int | None:
    try:
        with beneath.root(into) as root:
            version = activate.active(root)
    except OSError:
        return None
    return None if version is None else int(version)


def _entry(accepted: Accepted, variant: str) -> VariantEntry:
    try:
        return accepted.manifest.variant(variant)
    except KeyError as e:
        version = accepted.manifest.release.version
        raise TrustError(
            Refusal.MISSING_FILE, f"release {version} has no {variant}", hint="choose a variant it has"
        ) from e


def _moved(accepted: Accepted, name: str, pulled: Pulled) -> list[str]:
    if not pulled.fetched:
        return []
    version, fetched, reused = accepted.manifest.release.version, pulled.fetched / 1e6, pulled.reused / 1e6
    return [f"brought {name} of release {version}: {fetched:.2f} MB fetched, {reused:.2f} MB were there"]


def _has_programs(entry: VariantEntry) -> bool:
    return entry.format == "gguf"
