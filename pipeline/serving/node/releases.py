"""The releases a node may run: where the channel points, and what lies on the disk.

    HOME/model/      the variant, as `edge-release pull` lays it out
    HOME/runtime/    the programs of its target, likewise

Rules: a release is brought beside the one in use, and the disk leads to it only once it answered right (`keep`); what
is on the disk is verified again before every start; model and programs are always of one release.

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

from pipeline.catalog.names import Channel
from pipeline.errors import PipelineError, Refusal, TrustError
from pipeline.manifest.dsse import Opener
from pipeline.manifest.evidence import File
from pipeline.manifest.rules import Accepted, Seen
from pipeline.manifest.statement import VariantEntry, runtime_name
from pipeline.registry import activate, beneath, consume, pull, state, verify
from pipeline.registry.store import Progress, Store, silent
from pipeline.serving.node.state import Pin

MODEL, RUNTIME = "model", "runtime"
SERVER = "llama-server"

Clock = Callable[[], datetime]
# Raises TrustError where the evidence that is required is missing.
Proof = Callable[[Accepted], None]


@dataclass(frozen=True)
class Held:
    """A release on the disk, verified: the variant's folder and the programs' folder."""

    accepted: Accepted
    entry: VariantEntry
    model: Path
    runtime: Path

    @property
    def pin(self) -> Pin:
        return Pin(self.accepted.manifest.release.version, self.accepted.digest)

    @property
    def weights(self) -> Path:
        """The model file."""
        return self.model / self._file.name

    @property
    def golden(self) -> Path:
        """The golden prompts."""
        return self.model / "golden.jsonl"

    @property
    def server(self) -> Path:
        """The program that serves."""
        return self.runtime / SERVER

    @property
    def model_sha256(self) -> str:
        """The digest of the model file, as signed."""
        return self._file.sha256

    @property
    def _file(self) -> File:
        found = self.entry.model_file
        assert found is not None, "a GGUF variant has one model file"
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


@dataclass
class ChannelReleases:
    """The releases of a channel, in a registry and below a folder."""

    store: Store
    opener: Opener
    line: str
    channel: Channel
    variant: str
    home: Path
    seen: Path
    proof: Proof = never
    progress: Progress = silent
    clock: Clock = field(default=lambda: datetime.now(UTC))
    _brought: Held | None = field(default=None, init=False)

    def kept(self) -> Held | None:
        version = _active(self.home / MODEL)
        return None if version is None else self._verified(version, state.load(self.seen))

    def newest(self) -> Held:
        accepted = consume.fetch(
            self.store, opener=self.opener, line=self.line, seen=state.load(self.seen), now=self.clock(),
            channel=self.channel,
        )  # fmt: skip
        self.proof(accepted)
        if self._brought is not None and self._brought.accepted.digest == accepted.digest:
            return self._brought
        entry = _entry(accepted, self.variant)
        folders = [
            pull.stage(self.store, accepted, name, self.home / place, self.progress)
            for name, place in ((self.variant, MODEL), (runtime_name(entry.target), RUNTIME))
        ]
        self._brought = Held(accepted, entry, *folders)
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
            state.remember(self.seen, held.accepted)
        pull.use(self.home / RUNTIME, version)
        pull.use(self.home / MODEL, version)
        if not moved_back:
            state.remember(self.seen, held.accepted)

    def _verified(self, version: int, seen: Seen) -> Held:
        model, runtime = (self.home / place / activate.VERSIONS / str(version) for place in (MODEL, RUNTIME))
        accepted = self._folder(model, self.variant, seen)
        entry = _entry(accepted, self.variant)
        programs = self._folder(runtime, runtime_name(entry.target), seen)
        if programs.digest != accepted.digest:
            raise TrustError(Refusal.MIXED, f"{runtime} and {model} are of different releases")
        self.proof(accepted)
        return Held(accepted, entry, model, runtime)

    def _folder(self, folder: Path, name: str, seen: Seen) -> Accepted:
        return verify.verify_folder(
            folder, opener=self.opener, line=self.line, seen=seen, now=self.clock(), variant=name
        )


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
