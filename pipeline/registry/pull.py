"""Bring one variant, or one runtime, of an accepted release into a folder, and activate it.

    INTO/versions/<version>/    the variant's files, model.sig and release.json beside them
    INTO/current                link to the active version; swapped in one rename
    INTO/previous               link to the version before
    INTO/.partial/<digest>      a file on its way; a later pull goes on from there

`stage` brings a version and `use` activates it; `pull` does both.

Rules: `current` changes only after every byte of the new version was checked; what is on disk already is checked again
and linked instead of fetched; of a model that changed only the changed chunks are fetched, and the whole file where
that cannot be done; no more bytes are written than the manifest says; links below INTO are never written through.
Whatever interrupts this, repeating it finishes the job.

The stock verifier does not follow a link either: `cd INTO/current && model_signing verify … --signature model.sig .`
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline.errors import ConflictError, Refusal, RegistryError, StageError, TrustError
from pipeline.manifest import oms
from pipeline.manifest.chunks import Index
from pipeline.manifest.evidence import File
from pipeline.manifest.rules import Accepted
from pipeline.manifest.statement import RuntimeEntry, VariantEntry
from pipeline.registry import activate, beneath, indexes, kept, record, tree
from pipeline.registry.counted import Counted
from pipeline.registry.delta import Rebuilt, places
from pipeline.registry.download import Source, download, partial_size
from pipeline.registry.store import Progress, Store, silent
from pipeline.registry.streams import Meter
from pipeline.registry.verify import BESIDE, check_blob

PARTIAL = ".partial"
_AGAIN = "free space, then pull again: what came so far is kept"


@dataclass(frozen=True)
class Pulled:
    """A version's folder, the bytes that came from the registry for it, those that were on the disk already, and why
    files of which a part was on the disk were fetched whole."""

    folder: Path
    fetched: int
    reused: int
    whole: tuple[str, ...] = ()


def free_bytes(folder: Path) -> int:
    """Return how many bytes may still be written to a folder's file system."""
    info = os.statvfs(folder)
    return info.f_bavail * info.f_frsize


def pull(
    store: Store,
    accepted: Accepted,
    variant: str,
    into: Path,
    progress: Progress = silent,
    *,
    free: Callable[[Path], int] = free_bytes,
) -> Pulled:
    """Bring a variant or runtime into `into`, activate it, and return what was done.

    Args:
        accepted: by `consume.fetch`; remember its `seen` when this is done.

    Raises:
        RegistryError: there is no such variant or runtime, or the registry went away.
        TrustError: MISSING_FILE, TAMPERED, HOSTILE_MODEL, or SYMLINK (one was planted below `into`).
        StageError: the disk is full, or the folder cannot be written.
        ConflictError: another pull into this folder is running.
    """
    pulled = stage(store, accepted, variant, into, progress, free=free)
    use(into, accepted.manifest.release.version)
    return pulled


def stage(
    store: Store,
    accepted: Accepted,
    variant: str,
    into: Path,
    progress: Progress = silent,
    *,
    free: Callable[[Path], int] = free_bytes,
) -> Pulled:
    """Bring a variant or runtime into `into` beside the active version, and return what was done.

    It stays until another one is brought, or for good once `use` activated it. Raises as `pull`.
    """
    entry = _entry(accepted, variant)
    version = str(accepted.manifest.release.version)
    with (
        _explained(into),
        _locked(into) as root,
        beneath.folder(root, activate.VERSIONS, create=True) as versions,
        beneath.folder(root, PARTIAL, create=True) as partial,
    ):
        job = _Job(store, accepted, entry, versions, partial, Meter(progress, sum(f.size for f in entry.files)))
        if job.is_done(version):
            job.moved.reused = sum(f.size for f in entry.files)
        else:
            job.build(version, free(into))
        activate.prune(root, versions, besides=version)
        _empty(partial)
    return Pulled(into / activate.VERSIONS / version, job.moved.fetched, job.moved.reused, tuple(job.whole))


def use(into: Path, version: int) -> None:
    """Activate a version that `stage` brought, in one rename.

    Raises:
        StageError: it is not there, or the folder cannot be written.
        ConflictError: another pull into this folder is running.
    """
    with _explained(into), _locked(into) as root, beneath.folder(root, activate.VERSIONS) as versions:
        if str(version) not in activate.kept(versions):
            raise StageError(f"{into} holds no version {version}", hint="pull it again")
        activate.activate(root, str(version))
        activate.prune(root, versions)


@dataclass(frozen=True)
class _Job:
    """One variant on its way into an open folder of versions."""

    store: Store
    accepted: Accepted
    entry: VariantEntry | RuntimeEntry
    versions: int
    partial: int
    meter: Meter
    whole: list[str] = field(default_factory=list)

    @cached_property
    def moved(self) -> Counted:
        """The registry, and how much was fetched from it."""
        return Counted(self.store)

    def is_done(self, version: str) -> bool:
        """Return whether the version's folder is there and right."""
        try:
            with beneath.folder(self.versions, version) as folder:
                tree.check_shape(folder, self.entry.files, beside=BESIDE)
                right = all(tree.holds(folder, f) for f in self.entry.files)
                return right and all(kept.read(folder, name) == data for name, data in self._beside().items())
        except FileNotFoundError:
            return False
        except TrustError:
            if beneath.is_link(self.versions, version):
                raise
            return False

    def build(self, version: str, free: int) -> None:
        """Put the version's folder in place, whole."""
        staging = f"{beneath.TEMPORARY}{version}"
        with beneath.folder(self.versions, staging, create=True) as folder:
            _tidy(folder, self.entry.files)
            try:
                self._fill(folder, staging, free)
            except Exception:
                with suppress(OSError):  # goes if it is empty; what came so far is kept for the next pull
                    os.rmdir(staging, dir_fd=self.versions)
                raise
            for name, data in self._beside().items():
                beneath.write(folder, name, data)
            try:
                tree.check_shape(folder, self.entry.files, beside=BESIDE)
                tree.check_headers(folder, self.entry.files)
            except TrustError:
                beneath.remove(self.versions, staging)
                raise
            if isinstance(self.entry, RuntimeEntry):
                for f in self.entry.files:
                    beneath.make_executable(folder, f.name)
        _put_in_place(self.versions, staging, version)

    def _fill(self, folder: int, staging: str, free: int) -> None:
        missing = [f for f in self.entry.files if not tree.holds(folder, f)]
        sources = kept.paths(self.versions, missing)
        self._check_room([f for f in missing if f.sha256 not in sources], free)
        for wanted in self.entry.files:
            if wanted not in missing:
                self._reuse(wanted)
                continue
            self._place(wanted, folder, sources.get(wanted.sha256))
            sources[wanted.sha256] = f"{staging}/{wanted.name}"

    def _check_room(self, fetched: list[File], free: int) -> None:
        """Check that everything to be fetched is there and fits, before any of it is written."""
        distinct = {f.sha256: f for f in fetched}
        for f in distinct.values():
            check_blob(self.store, f.name, f)
        needed = sum(f.size - partial_size(self.partial, f) for f in distinct.values())
        if needed > free:
            raise StageError(f"no room: {needed} bytes are to be fetched, {free} are free", hint=_AGAIN)

    def _place(self, wanted: File, folder: int, source: str | None) -> None:
        above, _, last = wanted.name.rpartition("/")
        with beneath.folder(folder, above, create=True) as target:
            if source is not None:
                beneath.remove(target, last)
                _link(self.versions, source, target, last)
                self._reuse(wanted)
            else:
                self._bring(wanted)
                os.rename(wanted.sha256, last, src_dir_fd=self.partial, dst_dir_fd=target)
            os.fsync(target)

    def _reuse(self, wanted: File) -> None:
        self.moved.reuse(wanted.size)
        self.meter.step(wanted.name)(wanted.size)

    def _bring(self, wanted: File) -> None:
        """Bring a file into the folder of partial files: what changed of it, or the whole."""
        rebuilt, done, reused = self._rebuilt(wanted), self.meter.done, self.moved.reused
        if rebuilt is not None:
            try:
                self._download(rebuilt, wanted)
            except TrustError as e:
                if e.refusal is not Refusal.TAMPERED:
                    raise
                self._fall_back(wanted, e)
                self.meter.rewind(done)
                self.moved.reused = reused
                beneath.remove(self.partial, wanted.sha256)
            else:
                return
        self._download(lambda start: self.moved.open_blob(wanted.sha256, start), wanted)

    def _download(self, source: Source, wanted: File) -> None:
        download(source, wanted, self.partial, self.meter.step(wanted.name, self.moved.told))

    def _rebuilt(self, wanted: File) -> Source | None:
        """Return a file made of what is on the disk and what changed, where there is anything of it on the disk."""
        signed = self._indexes.get(wanted.name)
        if signed is None or not (models := kept.models(self.versions)):
            return None
        try:
            chunks = indexes.load(self.moved, signed, wanted)
        except TrustError as e:
            self._fall_back(wanted, e)
            return None
        found = places(self.versions, models, chunks)
        rebuilt = Rebuilt(self.moved, wanted.sha256, chunks, found, self.versions)
        return rebuilt.open if found else None

    def _fall_back(self, wanted: File, error: TrustError) -> None:
        self.whole.append(f"{wanted.name} was fetched whole: {error.message}")

    @property
    def _indexes(self) -> dict[str, Index]:
        return {} if isinstance(self.entry, RuntimeEntry) else {index.file: index for index in self.entry.chunks}

    def _beside(self) -> dict[str, bytes]:
        bundles = self.accepted.bundles
        return {record.FILE: record.encode(bundles), oms.SIGNATURE_FILE: bundles.variants[self.entry.name]}


def _entry(accepted: Accepted, variant: str) -> VariantEntry | RuntimeEntry:
    try:
        return accepted.manifest.entry(variant)
    except KeyError as e:
        there = ", ".join(entry.name for entry in accepted.manifest.entries)
        raise RegistryError(
            f"release {accepted.manifest.release.version} has no variant {variant}", hint=f"it has {there}"
        ) from e


def _tidy(folder: int, files: list[File]) -> None:
    """Remove from an unfinished folder what does not belong there, links among it."""
    names = {f.name for f in files}
    folders = tree.parents(names)
    for name, info in list(tree.entries(folder, folders)):
        if not (stat.S_ISDIR(info.st_mode) if name in folders else stat.S_ISREG(info.st_mode) and name in names):
            above, _, last = name.rpartition("/")
            with beneath.folder(folder, above) as inner:
                beneath.remove(inner, last)


def _empty(folder: int) -> None:
    for name in os.listdir(folder):
        beneath.remove(folder, name)


def _put_in_place(versions: int, staging: str, version: str) -> None:
    try:
        os.rename(staging, version, src_dir_fd=versions, dst_dir_fd=versions)
        os.fsync(versions)
    except OSError as e:
        if e.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise
        beneath.exchange(versions, staging, version)
        beneath.remove(versions, staging)


def _link(versions: int, source: str, target: int, name: str) -> None:
    above, _, last = source.rpartition("/")
    try:
        with beneath.folder(versions, above) as folder:
            os.link(last, name, src_dir_fd=folder, dst_dir_fd=target, follow_symlinks=False)
    except OSError as e:
        if e.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV}:
            raise
        with beneath.file(versions, source) as f, beneath.fresh(target) as (temporary, copy):
            shutil.copyfileobj(f, copy, 1 << 20)
        os.rename(temporary, name, src_dir_fd=target, dst_dir_fd=target)


@contextmanager
def _locked(into: Path) -> Iterator[int]:
    into.mkdir(parents=True, exist_ok=True)
    with beneath.root(into) as root:
        lock = beneath.open_in(root, ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(lock, into)
            yield root
        finally:
            os.close(lock)


def _lock(handle: int, into: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise ConflictError(f"another pull into {into} is running", hint="let it finish, then pull again") from e


@contextmanager
def _explained(into: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        full = e.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        raise StageError(
            f"cannot write {into}: {e.strerror}", hint=_AGAIN if full else "mend that folder or name another one"
        ) from e
