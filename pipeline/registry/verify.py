"""Verify a release where it lies: every file of it in a registry, or one variant's folder that was pulled.

Rules: the statements first, then sizes, digests and the models' headers; everything holds or a TrustError comes out.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pipeline.errors import Refusal, RegistryError, TrustError
from pipeline.manifest import oms, rules, statement
from pipeline.manifest.chunks import Index
from pipeline.manifest.dsse import Opener, check_size
from pipeline.manifest.evidence import File
from pipeline.manifest.rules import Accepted, Bundles, Seen
from pipeline.manifest.statement import Manifest, RuntimeEntry, VariantEntry
from pipeline.registry import beneath, headers, indexes, layout, record, streams, tree
from pipeline.registry.store import Progress, Store, silent

BESIDE = frozenset({oms.SIGNATURE_FILE, record.FILE})


def verify_release(store: Store, accepted: Accepted, progress: Progress = silent) -> None:
    """Check every file of an accepted release in a registry.

    Raises:
        TrustError: MISSING_FILE, TAMPERED, SYMLINK or HOSTILE_MODEL.
        RegistryError: the registry cannot be used.
    """
    check_present(store, accepted.manifest)
    distinct = {f.sha256: (name, f) for name, f in sorted(accepted.manifest.files().items(), reverse=True)}
    meter = streams.Meter(progress, sum(f.size for _, f in distinct.values()))
    for name, wanted in sorted(distinct.values(), key=lambda pair: pair[0]):
        with store.open_blob(wanted.sha256) as stream:
            if streams.digest(stream, meter.step(name)) != wanted.sha256:
                raise TrustError(Refusal.TAMPERED, f"{name} is not the file that was signed: its digest differs")
    for name, wanted in accepted.manifest.files().items():
        if headers.has_header(name):
            with store.open_blob(wanted.sha256) as stream:
                headers.check(name, stream, wanted.size)
    for wanted, index in accepted.manifest.indexes().values():
        indexes.load(store, index, wanted)


def check_present(store: Store, manifest: Manifest) -> None:
    """Check that every file of a release is in the registry with its size; raises TrustError."""
    for name, wanted in manifest.files().items():
        check_blob(store, name, wanted)
    for name, (_, index) in manifest.indexes().items():
        check_blob(store, f"{name}'s chunk index", index)


def check_blob(store: Store, name: str, wanted: File | Index) -> None:
    """Check that one file is in the registry with its size; raises TrustError MISSING_FILE or TAMPERED."""
    size = store.blob_size(wanted.sha256)
    if size is None:
        raise TrustError(Refusal.MISSING_FILE, f"the registry lacks {name}", hint="publish the release again")
    if size != wanted.size:
        raise TrustError(Refusal.TAMPERED, f"{name} has {size} bytes in the registry instead of {wanted.size}")


def verify_folder(
    folder: Path,
    *,
    opener: Opener,
    line: str,
    seen: Seen,
    now: datetime,
    variant: str | None = None,
    allow_rollback: bool = False,
    progress: Progress = silent,
) -> Accepted:
    """Check a folder that was pulled, by the statements that lie beside its files.

    Args:
        folder: `INTO/current`, or a version's folder.
        variant: the variant it must hold.
        allow_rollback: the folder may be of an older release than was seen.

    Raises:
        TrustError: see `Refusal`; UNSIGNED where the statements are missing.
        RegistryError: there is no such folder.
    """
    try:
        with beneath.root(folder) as root:
            bundles = record.decode(_statement(root, record.FILE, layout.MAX_RECORD))
            signature = _statement(root, oms.SIGNATURE_FILE, layout.MAX_RECORD)
        version = statement.parse(opener(bundles.manifest).payload).release.version
        accepted = rules.accept_release(
            bundles, opener=opener, line=line, version=version, seen=seen, now=now, allow_rollback=allow_rollback
        )
        entry = held_variant(accepted.manifest, bundles, signature)
        if variant not in {None, entry.name}:
            raise TrustError(Refusal.SWAPPED, f"the folder holds {entry.name}, not {variant}")
        tree.check(folder, entry.files, beside=BESIDE, progress=progress)
    except OSError as e:
        raise RegistryError(f"{folder}: {e.strerror}", hint="name a folder that was pulled") from e
    return accepted


def held(folder: Path, accepted: Accepted) -> str:
    """Return the name of the variant or runtime that an accepted folder holds; raises TrustError, RegistryError."""
    try:
        with beneath.root(folder) as root:
            signature = _statement(root, oms.SIGNATURE_FILE, layout.MAX_RECORD)
    except OSError as e:
        raise RegistryError(f"{folder}: {e.strerror}", hint="name a folder that was pulled") from e
    return held_variant(accepted.manifest, accepted.bundles, signature).name


def _statement(root: int, name: str, limit: int) -> bytes:
    try:
        with beneath.file(root, name) as f:
            data = f.read(limit + 1)
    except FileNotFoundError as e:
        raise TrustError(Refusal.UNSIGNED, f"there is no {name} beside the files") from e
    if len(data) > limit:
        raise TrustError(Refusal.OVERSIZED, f"{name} has more than the {limit} bytes that are read")
    return data


def held_variant(manifest: Manifest, bundles: Bundles, signature: bytes) -> VariantEntry | RuntimeEntry:
    """Return the variant or runtime whose signature lies in a folder.

    Raises:
        TrustError: MIXED, where it is of another release.
    """
    check_size(signature)
    for entry in manifest.entries:
        if bundles.variants[entry.name] == record.normal(signature):
            return entry
    raise TrustError(Refusal.MIXED, f"{oms.SIGNATURE_FILE} is not of the release in {record.FILE}")
