"""Publish a signed release: its files and their chunk indexes, then its record, then the channel.

Rules: nothing is uploaded before the release passes the checks its consumers will make; the order makes a half release
invisible wherever this is interrupted, and repeating it finishes the job; nothing that is published is ever changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pipeline.catalog.names import Channel
from pipeline.errors import ConflictError, GateError, Refusal, TrustError
from pipeline.manifest import rules, statement
from pipeline.manifest.dsse import Opener
from pipeline.manifest.evidence import File
from pipeline.manifest.pointer import PointerPredicate
from pipeline.manifest.rules import Accepted, Bundles, Seen
from pipeline.manifest.statement import Manifest
from pipeline.ports.keys import Signer
from pipeline.registry import consume, indexes, layout, record
from pipeline.registry.row import Row
from pipeline.registry.store import Progress, Store, silent
from pipeline.registry.streams import Meter

_REBUILD = "build and sign the release again, then publish"


@dataclass(frozen=True)
class SignedRelease:
    """What is to be published; `files` maps each subject's name, `<variant>/<file>`, to where it lies."""

    bundles: Bundles
    files: Mapping[str, Path]


@dataclass(frozen=True)
class Published:
    """What was done: files stored, files that were there already, and where the channel points now."""

    release: Accepted
    stored: int
    skipped: int
    pointer: PointerPredicate


def publish(
    store: Store,
    release: SignedRelease,
    *,
    channel: Channel,
    signer: Signer,
    opener: Opener,
    now: datetime,
    progress: Progress = silent,
) -> Published:
    """Publish a release and point a channel to it.

    Raises:
        TrustError: consumers would refuse it, or a file is not what the manifest says.
        GateError: the gate does not allow this channel.
        ConflictError: the version is taken by other content, or the channel is further already.
        RegistryError: the registry cannot be used; running it again goes on.
    """
    accepted = _accepted(release.bundles, opener, now)
    manifest = accepted.manifest
    row = Row(store, opener, manifest.release.line, channel)
    check_gate(manifest, channel)
    _check_files(manifest.files(), release.files)
    _check_forward(row, manifest)
    there = _is_published(store, accepted, opener=opener, now=now)
    stored, skipped = _store_files(store, manifest.files(), release.files, progress)
    for name, (file, index) in manifest.indexes().items():
        indexes.put(store, index, file, release.files[name])
    if not there:
        _create(store, accepted, opener=opener, now=now)
    return Published(accepted, stored, skipped, _move(row, accepted, signer))


def check_gate(manifest: Manifest, channel: Channel) -> None:
    """Raise GateError unless the gate allows a release on a channel."""
    gate = manifest.predicate.gate
    if not gate.passed or channel not in gate.channels:
        allowed = ", ".join(gate.channels) if gate.passed and gate.channels else "none"
        raise GateError(
            f"release {manifest.release.version} may not go to {channel}; channels its gate allows: {allowed}",
            hint="gather the evidence that params.yaml asks for this channel, or choose an allowed one",
        )


def check_not_older(row: Row, version: int, current: PointerPredicate | None) -> None:
    """Raise ConflictError where a channel points to a newer release than `version`."""
    if current is not None and current.version > version:
        raise ConflictError(
            f"{row.label} points to release {current.version}, which is newer than {version}",
            hint="to go back on purpose, use rollback",
        )


def _accepted(bundles: Bundles, opener: Opener, now: datetime) -> Accepted:
    name = statement.parse(opener(bundles.manifest).payload).release
    return rules.accept_release(bundles, opener=opener, line=name.line, version=name.version, seen=Seen(), now=now)


def _check_files(wanted: Mapping[str, File], given: Mapping[str, Path]) -> None:
    if set(wanted) != set(given):
        missing, extra = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
        kind = Refusal.MISSING_FILE if missing else Refusal.EXTRA_FILE
        raise TrustError(kind, f"to publish: missing {missing[:3]}, not in the manifest {extra[:3]}", hint=_REBUILD)
    for name, path in given.items():
        if path.is_symlink() or not path.is_file():
            raise TrustError(Refusal.MISSING_FILE, f"{path} is not a regular file", hint=_REBUILD)
        if path.stat().st_size != wanted[name].size:
            raise TrustError(Refusal.TAMPERED, f"{path} has not the size the manifest says", hint=_REBUILD)


def _check_forward(row: Row, manifest: Manifest) -> PointerPredicate | None:
    """Return where the channel points, if this release may follow."""
    found = row.latest()
    current = found[0] if found else None
    version = manifest.release.version
    check_not_older(row, version, current)
    if current and current.rollback and current.version < version:
        highest = max(move.version for move in row.history())
        if version <= highest:
            raise ConflictError(
                f"{row.label} was rolled back from release {highest} to {current.version}",
                hint=f"publish a newer version than {highest}, or bring this one back with promote",
            )
    return current


def _is_published(store: Store, own: Accepted, *, opener: Opener, now: datetime) -> bool:
    """Return whether the registry has this very release: what counts is what is signed, not the signature's bytes."""
    name = own.manifest.release
    bundles = consume.load(store, name.line, name.version)
    if bundles is None:
        return False
    there = rules.accept_release(bundles, opener=opener, line=name.line, version=name.version, seen=Seen(), now=now)
    if there.digest == own.digest:
        return True
    free = max(consume.releases(store, name.line)) + 1
    raise ConflictError(
        f"release {name.version} of {name.line} is published already, with other content",
        hint=f"raise release.version in params.yaml to {free}, then build, sign and publish again",
    )


def _store_files(
    store: Store, wanted: Mapping[str, File], given: Mapping[str, Path], progress: Progress
) -> tuple[int, int]:
    by_digest = {wanted[name].sha256: name for name in sorted(given, reverse=True)}
    meter = Meter(progress, sum(wanted[name].size for name in by_digest.values()))
    stored = 0
    for digest, name in sorted(by_digest.items(), key=lambda item: item[1]):
        advance = meter.blob(name)
        stored += store.put_blob(digest, given[name], advance)
        advance(wanted[name].size, wanted[name].size, name)
    return stored, len(by_digest) - stored


def _create(store: Store, own: Accepted, *, opener: Opener, now: datetime) -> None:
    name = own.manifest.release
    try:
        store.create(layout.release(name.line, name.version), record.encode(own.bundles))
    except ConflictError:
        # Another publisher of this very release, or our own request sent twice, is as good; other content is not.
        if not _is_published(store, own, opener=opener, now=now):
            raise


def _move(row: Row, own: Accepted, signer: Signer) -> PointerPredicate:
    current = _check_forward(row, own.manifest)
    if current and (current.version, current.manifest_sha256) == (own.manifest.release.version, own.digest):
        return current
    return row.append(own, signer=signer, current=current)
