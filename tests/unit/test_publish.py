"""Publishing: files, then the record, then the channel; again is harmless, and nothing published ever changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalog.names import Channel
from pipeline.errors import ConflictError, GateError, PipelineError, Refusal, TrustError
from pipeline.manifest.rules import Accepted, Seen
from pipeline.registry import layout, record
from pipeline.registry.consume import fetch, releases
from pipeline.registry.folder import FolderStore
from pipeline.registry.publish import Published, SignedRelease, publish
from pipeline.registry.store import Progress, Store, silent
from pipeline.registry.verify import verify_release
from tests.support.releases import LATER, LINE, NOW, Publisher, flipped, tree
from tests.support.stores import Hooked

STOLEN = "tiny-edge-arm64/model.gguf"


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def store(root: Path) -> FolderStore:
    return FolderStore(root)


def _publish(store: Store, release: SignedRelease, publisher: Publisher, **changed: Any) -> Published:
    usual: dict[str, Any] = {
        "channel": Channel.DEV,
        "signer": publisher.sign,
        "opener": publisher.opener,
        "now": NOW,
        "progress": silent,
    }
    return publish(store, release, **{**usual, **changed})


def _fetch(store: Store, publisher: Publisher, channel: Channel = Channel.DEV) -> Accepted:
    return fetch(store, opener=publisher.opener, line=LINE, seen=Seen(), now=NOW, channel=channel)


def test_a_release_is_published_whole_and_in_order(store: FolderStore, publisher: Publisher, tmp_path: Path) -> None:
    """Shared files and indexes are stored once, the record after all of them, the pointer last; it is accepted."""
    hooked = Hooked(store)
    done = _publish(hooked, publisher.release(tmp_path / "one"), publisher)
    assert hooked.calls == ["put_blob"] * (3 + 2) + ["create releases", "create channels"]
    assert (done.stored, done.skipped, done.pointer.serial) == (3, 0, 1)
    accepted = _fetch(store, publisher)
    assert accepted.manifest.release.version == 1
    verify_release(store, accepted)


def test_publishing_again_changes_nothing(store: FolderStore, root: Path, publisher: Publisher, tmp_path: Path) -> None:
    """The same content with fresh signatures is the same release; the record that is there counts."""
    _publish(store, publisher.release(tmp_path / "one"), publisher)
    before = tree(root)
    again = publisher.release(tmp_path / "again")
    done = _publish(store, again, publisher)
    assert (done.stored, done.skipped, done.pointer.serial) == (0, 3, 1)
    assert tree(root) == before


def test_a_new_version_shares_files_and_moves_the_channel(
    store: FolderStore, publisher: Publisher, tmp_path: Path
) -> None:
    """A file that did not change is not stored again; the pointer says where the channel was."""
    _publish(store, publisher.release(tmp_path / "one", 1), publisher)
    done = _publish(store, publisher.release(tmp_path / "two", 2), publisher)
    assert (done.stored, done.skipped) == (2, 1)
    assert (done.pointer.serial, done.pointer.version, done.pointer.previous) == (2, 2, 1)
    assert releases(store, LINE) == [1, 2]


def test_a_taken_version_names_the_next_free_one(store: FolderStore, publisher: Publisher, tmp_path: Path) -> None:
    """Other content under a version that is taken is refused before anything is stored."""
    _publish(store, publisher.release(tmp_path / "one", 1), publisher)
    _publish(store, publisher.release(tmp_path / "seven", 7), publisher)
    hooked = Hooked(store)
    with pytest.raises(ConflictError) as caught:
        _publish(hooked, publisher.release(tmp_path / "other", 7, seed=99), publisher)
    assert "release.version in params.yaml to 8" in caught.value.hint
    assert hooked.calls == []


def test_a_channel_is_not_moved_back(store: FolderStore, publisher: Publisher, tmp_path: Path) -> None:
    """An older version than the channel's is refused before anything is stored, with a word on rollback."""
    _publish(store, publisher.release(tmp_path / "two", 2), publisher)
    hooked = Hooked(store)
    with pytest.raises(ConflictError) as caught:
        _publish(hooked, publisher.release(tmp_path / "one", 1), publisher)
    assert "rollback" in caught.value.hint
    assert hooked.calls == []


def _without_file(release: SignedRelease) -> SignedRelease:
    return replace(release, files={n: p for n, p in release.files.items() if n != STOLEN})


def _shorter(release: SignedRelease) -> SignedRelease:
    release.files[STOLEN].write_bytes(b"GGUF")
    return release


def _altered(release: SignedRelease) -> SignedRelease:
    path = release.files[STOLEN]
    path.write_bytes(flipped(path.read_bytes()))
    return release


def _linked(release: SignedRelease) -> SignedRelease:
    path = release.files[STOLEN]
    target = path.rename(path.with_name("elsewhere"))
    path.symlink_to(target)
    return release


def _deleted(release: SignedRelease) -> SignedRelease:
    release.files[STOLEN].unlink()
    return release


def _unsigned(release: SignedRelease) -> SignedRelease:
    return replace(release, bundles=replace(release.bundles, manifest=b""))


REFUSED: dict[str, tuple[Refusal, Callable[[SignedRelease], SignedRelease]]] = {
    "unsigned": (Refusal.UNSIGNED, _unsigned),
    "a file is not given": (Refusal.MISSING_FILE, _without_file),
    "a file too many": (Refusal.EXTRA_FILE, lambda r: replace(r, files={**r.files, "x/y": Path("y")})),
    "a file vanished": (Refusal.MISSING_FILE, _deleted),
    "a file has another size": (Refusal.TAMPERED, _shorter),
    "a file has other bytes": (Refusal.TAMPERED, _altered),
    "a file is a link": (Refusal.MISSING_FILE, _linked),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_differs_from_the_manifest_is_not_published(
    case: str, store: FolderStore, publisher: Publisher, tmp_path: Path
) -> None:
    """A release whose files are not what was signed ends before any record or pointer is created."""
    refusal, damage = REFUSED[case]
    hooked = Hooked(store)
    with pytest.raises(TrustError) as caught:
        _publish(hooked, damage(publisher.release(tmp_path / "one")), publisher)
    assert caught.value.refusal is refusal
    if case != "a file has other bytes":
        assert hooked.calls == []
    assert not [call for call in hooked.calls if call.startswith("create")]
    assert releases(store, LINE) == []


def test_other_bytes_are_never_stored_under_the_signed_digest(
    store: FolderStore, root: Path, publisher: Publisher, tmp_path: Path
) -> None:
    """Whatever is stored has the digest of its name, and a mended file can be published afterwards."""
    release = publisher.release(tmp_path / "one")
    good = {name: path.read_bytes() for name, path in release.files.items()}
    for name in (STOLEN, "tiny-edge-x86_64/model.gguf"):
        release.files[name].write_bytes(flipped(good[name]))
    with pytest.raises(TrustError):
        _publish(store, release, publisher)
    release.files[STOLEN].write_bytes(good[STOLEN])
    _publish(store, release, publisher)
    verify_release(store, _fetch(store, publisher))


SIGNED_WRONGLY: dict[str, tuple[type[PipelineError], dict[str, Any]]] = {
    "another signer": (TrustError, {"opener": Publisher().opener}),
    "expired": (TrustError, {"now": LATER}),
    "pointer's signer is not trusted": (TrustError, {"signer": Publisher().sign}),
}


@pytest.mark.parametrize("case", SIGNED_WRONGLY)
def test_what_consumers_would_refuse_is_not_published(
    case: str, store: FolderStore, publisher: Publisher, tmp_path: Path
) -> None:
    """The publisher applies its consumers' rules first."""
    kind, changed = SIGNED_WRONGLY[case]
    with pytest.raises(kind):
        _publish(store, publisher.release(tmp_path / "one"), publisher, **changed)
    assert store.names("channels/demo/") == []


@pytest.mark.parametrize(
    "gate", [{"channels": (Channel.CANARY,)}, {"passed": False}, {"channels": ()}], ids=["other", "failed", "none"]
)
def test_the_gate_decides_on_channels(
    gate: dict[str, Any], store: FolderStore, publisher: Publisher, tmp_path: Path
) -> None:
    """A channel the gate does not allow gets nothing."""
    hooked = Hooked(store)
    with pytest.raises(GateError):
        _publish(hooked, publisher.release(tmp_path / "one", **gate), publisher)
    assert hooked.calls == []


def _race(winner: Callable[[], object], at: str) -> Callable[[str], None]:
    """Return a hook that lets another publisher through right before a call."""
    pending = [winner]

    def hook(call: str) -> None:
        if call == at and pending:
            pending.pop()()

    return hook


def test_the_loser_of_a_race_for_a_version_is_told(store: FolderStore, publisher: Publisher, tmp_path: Path) -> None:
    """Two contents for one version: one wins whole, the other is told, and the channel points to the winner."""
    other = publisher.release(tmp_path / "other", 1, seed=5)
    hooked = Hooked(store, before=_race(lambda: _publish(store, other, publisher), "create releases"))
    with pytest.raises(ConflictError) as caught:
        _publish(hooked, publisher.release(tmp_path / "one", 1), publisher)
    assert "to 2" in caught.value.hint
    accepted = _fetch(store, publisher)
    assert accepted.bundles.manifest == _canonical(other)
    verify_release(store, accepted)


def _canonical(release: SignedRelease) -> bytes:
    return record.normal(release.bundles.manifest)


def test_the_loser_of_a_race_for_a_channel_is_told(store: FolderStore, publisher: Publisher, tmp_path: Path) -> None:
    """Two versions for one channel: the loser's release stays published, the channel is not taken from the winner."""
    third = publisher.release(tmp_path / "three", 3)
    hooked = Hooked(store, before=_race(lambda: _publish(store, third, publisher), "create channels"))
    with pytest.raises(ConflictError) as caught:
        _publish(hooked, publisher.release(tmp_path / "two", 2), publisher)
    assert "release 3 first" in caught.value.message
    assert _fetch(store, publisher).manifest.release.version == 3
    assert releases(store, LINE) == [2, 3]


@pytest.mark.parametrize("at", ["create releases", "create channels"])
def test_two_publishers_of_the_same_release_both_succeed(
    at: str, store: FolderStore, publisher: Publisher, tmp_path: Path
) -> None:
    """Racing with oneself is no conflict, though signatures differ: one record and one move are there."""
    twin = publisher.release(tmp_path / "twin", 1)
    hooked = Hooked(store, before=_race(lambda: _publish(store, twin, publisher), at))
    assert _publish(hooked, publisher.release(tmp_path / "one", 1), publisher).pointer.serial == 1
    assert len(store.names("channels/demo/dev/")) == 1


@pytest.mark.parametrize("cut", ["blobs", "record", "pointer"])
def test_what_was_begun_is_finished(
    cut: str, store: FolderStore, root: Path, publisher: Publisher, tmp_path: Path
) -> None:
    """Whatever is missing of a release is added by publishing it again."""
    release = publisher.release(tmp_path / "one")
    _publish(store, release, publisher)
    shutil.rmtree(root / "channels")
    if cut != "pointer":
        shutil.rmtree(root / "releases")
    if cut == "blobs":
        next(iter((root / "blobs/sha256").iterdir())).unlink()
    _publish(store, release, publisher)
    verify_release(store, _fetch(store, publisher))


def test_a_record_of_somebody_else_is_not_taken_for_ones_own(
    store: FolderStore, publisher: Publisher, tmp_path: Path
) -> None:
    """A record planted under the version is refused for what it is, and no channel moves."""
    release = publisher.release(tmp_path / "one")
    store.create(layout.release(LINE, 1), b'{"manifest": {}, "variants": {}}')
    with pytest.raises(TrustError) as caught:
        _publish(store, release, publisher)
    assert caught.value.refusal is Refusal.UNSIGNED
    assert store.names("channels/demo/") == []


def _recorder(seen: list[tuple[int, int, str]]) -> Progress:
    return lambda *report: seen.append(report)


def test_progress_is_of_the_whole_release(store: FolderStore, publisher: Publisher, tmp_path: Path) -> None:
    """Progress only rises, names the files, and ends at the release's size; files there already count at once."""
    release = publisher.release(tmp_path / "one")
    for _ in range(2):
        seen: list[tuple[int, int, str]] = []
        _publish(store, release, publisher, progress=_recorder(seen))
        assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
        assert seen[-1][0] == seen[-1][1]
        assert STOLEN in {label for _, _, label in seen}
