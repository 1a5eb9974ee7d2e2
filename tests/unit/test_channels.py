"""Channels: forward by promotion, back by rollback, with the whole row of moves kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.catalog.names import Channel
from pipeline.errors import ConflictError, GateError, Refusal, RegistryError, TrustError
from pipeline.manifest.pointer import PointerPredicate
from pipeline.manifest.rules import Accepted, Seen
from pipeline.registry import channels
from pipeline.registry.consume import fetch
from pipeline.registry.folder import FolderStore
from pipeline.registry.publish import publish
from pipeline.registry.row import Row
from pipeline.registry.store import Store
from tests.support.releases import LATER, LINE, NOW, Publisher, replace_file
from tests.support.stores import Hooked

DEV, STABLE = Channel.DEV, Channel.STABLE


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def store(root: Path) -> FolderStore:
    return FolderStore(root)


@pytest.fixture
def add(store: FolderStore, publisher: Publisher, tmp_path: Path) -> Any:
    """Publish versions to dev."""

    def publish_to_dev(*versions: int, **options: Any) -> None:
        for version in versions:
            release = publisher.release(tmp_path / str(version), version, **options)
            publish(store, release, channel=DEV, signer=publisher.sign, opener=publisher.opener, now=NOW)

    return publish_to_dev


def _version(store: Store, publisher: Publisher, version: int) -> Accepted:
    return fetch(store, opener=publisher.opener, line=LINE, seen=Seen(), now=NOW, version=version)


def _promote(store: Store, publisher: Publisher, version: int, channel: Channel = STABLE) -> PointerPredicate:
    accepted = _version(store, publisher, version)
    return channels.promote(store, accepted, channel=channel, signer=publisher.sign, opener=publisher.opener)


def _rollback(store: Store, publisher: Publisher, **changed: Any) -> PointerPredicate:
    usual = {"line": LINE, "channel": DEV, "signer": publisher.sign, "opener": publisher.opener, "now": NOW}
    return channels.rollback(store, **{**usual, **changed})


def _row(store: Store, publisher: Publisher, channel: Channel = DEV) -> list[tuple[int, int, int | None, bool]]:
    moves = channels.history(store, line=LINE, channel=channel, opener=publisher.opener)
    return [(m.serial, m.version, m.previous, m.rollback) for m in moves]


def test_a_promoted_release_is_the_same_release(store: FolderStore, publisher: Publisher, add: Any) -> None:
    """Promotion points another channel to the release; doing it again changes nothing."""
    add(1)
    assert _promote(store, publisher, 1).manifest_sha256 == _version(store, publisher, 1).digest
    assert _promote(store, publisher, 1).serial == 1
    assert _row(store, publisher, STABLE) == [(1, 1, None, False)]


def test_promotion_does_not_go_back(store: FolderStore, publisher: Publisher, add: Any) -> None:
    """A channel that points to a newer release stays."""
    add(1, 2)
    _promote(store, publisher, 2)
    with pytest.raises(ConflictError) as caught:
        _promote(store, publisher, 1)
    assert "rollback" in caught.value.hint
    assert len(_row(store, publisher, STABLE)) == 1


def test_promotion_needs_the_gate(store: FolderStore, publisher: Publisher, add: Any) -> None:
    """A channel the release's gate does not name is refused."""
    add(1, channels=(DEV,))
    with pytest.raises(GateError):
        _promote(store, publisher, 1)


def test_promotion_needs_the_files(store: FolderStore, root: Path, publisher: Publisher, add: Any) -> None:
    """No channel is pointed to a release whose files are gone or cut."""
    add(1)
    blob = next(iter((root / "blobs/sha256").iterdir()))
    replace_file(blob, b"")
    with pytest.raises(TrustError) as caught:
        _promote(store, publisher, 1)
    assert caught.value.refusal is Refusal.TAMPERED
    blob.unlink()
    with pytest.raises(TrustError) as caught:
        _promote(store, publisher, 1)
    assert caught.value.refusal is Refusal.MISSING_FILE


def test_rollback_goes_down_release_by_release(store: FolderStore, publisher: Publisher, add: Any) -> None:
    """Each rollback goes to the release before the current one, never to one that was rolled back from."""
    add(1, 2, 3)
    assert _rollback(store, publisher).version == 2
    assert _rollback(store, publisher).version == 1
    with pytest.raises(RegistryError) as caught:
        _rollback(store, publisher)
    assert "no release before 1" in caught.value.message
    add(4)
    assert _rollback(store, publisher).version == 1
    assert _row(store, publisher) == [
        (1, 1, None, False),
        (2, 2, 1, False),
        (3, 3, 2, False),
        (4, 2, 3, True),
        (5, 1, 2, True),
        (6, 4, 1, False),
        (7, 1, 4, True),
    ]


def test_rollback_to_a_named_release(store: FolderStore, publisher: Publisher, add: Any) -> None:
    """`to` names any older release; the current one is no move, a newer one is a promotion."""
    add(1, 2, 3)
    assert _rollback(store, publisher, to=1).version == 1
    assert _rollback(store, publisher, to=1).serial == 4
    with pytest.raises(ConflictError) as caught:
        _rollback(store, publisher, to=2)
    assert "promote" in caught.value.hint


def test_consumers_follow_a_rollback_and_refuse_a_replay(
    store: FolderStore, root: Path, publisher: Publisher, add: Any
) -> None:
    """One who saw release 2 follows a signed rollback to 1, and refuses the old pointer to 1 put last again."""
    add(1, 2)
    look = {"opener": publisher.opener, "line": LINE, "now": NOW, "channel": DEV}
    seen = fetch(store, seen=Seen(), **look).seen
    _rollback(store, publisher)
    back = fetch(store, seen=seen, **look)
    assert (back.manifest.release.version, back.seen.releases["dev"].version) == (1, 1)
    add(3)
    seen = fetch(store, seen=back.seen, **look).seen
    row = root / "channels/demo/dev"
    for name in ("0000000002.json", "0000000003.json", "0000000004.json"):
        (row / name).unlink()
    with pytest.raises(TrustError) as caught:
        fetch(store, seen=seen, **look)
    assert caught.value.refusal is Refusal.ROLLBACK


def test_a_consumer_that_missed_a_rollback_follows_what_came_after_it(
    store: FolderStore, root: Path, publisher: Publisher, add: Any
) -> None:
    """Who saw 3 and next sees 2 promoted after a rollback to 1 finds the signed move between; without it 2 is refused."""
    add(1, 2, 3)
    look = {"opener": publisher.opener, "line": LINE, "now": NOW, "channel": DEV}
    seen = fetch(store, seen=Seen(), **look).seen
    _rollback(store, publisher, to=1)
    _promote(store, publisher, 2, DEV)
    found = fetch(store, seen=seen, **look)
    assert (found.manifest.release.version, found.rolled_back) == (2, True)
    (root / "channels/demo/dev/0000000004.json").unlink()
    with pytest.raises(TrustError) as caught:
        fetch(store, seen=seen, **look)
    assert caught.value.refusal is Refusal.ROLLBACK


def test_a_rollback_read_by_another_process_first_is_followed(
    store: FolderStore, publisher: Publisher, add: Any
) -> None:
    """Another process remembered the move and was killed before it used the release: the move is still a rollback."""
    add(1, 2)
    look = {"opener": publisher.opener, "line": LINE, "now": NOW, "channel": DEV}
    seen = fetch(store, seen=Seen(), **look).seen
    _rollback(store, publisher)
    read = Row(store, publisher.opener, LINE, DEV).latest(seen)
    assert read is not None
    found = fetch(store, seen=read[1], **look)
    assert (found.manifest.release.version, found.rolled_back) == (1, True)


def test_a_release_that_was_rolled_back_from_needs_promotion(
    store: FolderStore, publisher: Publisher, add: Any
) -> None:
    """Publishing it once more (a repeated job) does not undo the rollback; promoting it does."""
    add(1, 2)
    _rollback(store, publisher)
    with pytest.raises(ConflictError) as caught:
        add(2)
    assert "promote" in caught.value.hint
    assert _promote(store, publisher, 2, DEV).version == 2


def test_a_second_rollback_brings_nothing_back(store: FolderStore, publisher: Publisher, add: Any) -> None:
    """What any of the moves before pointed to needs promotion; a release newer than all of them does not."""
    add(1, 2, 3)
    for _ in range(2):
        _rollback(store, publisher)
    for version in (2, 3):
        with pytest.raises(ConflictError) as caught:
            add(version)
        assert "newer version than 3" in caught.value.hint
    add(4)
    assert channels.history(store, line=LINE, channel=DEV, opener=publisher.opener)[-1].version == 4


REFUSED: dict[str, tuple[dict[str, Any], Refusal]] = {
    "expired": ({"now": LATER}, Refusal.EXPIRED),
    "signer not trusted": ({"signer": Publisher().sign}, Refusal.WRONG_SIGNER),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rollback_verifies_first(case: str, store: FolderStore, publisher: Publisher, add: Any) -> None:
    """A release that may not be used any more is nothing to go back to, and nobody else may move the channel."""
    changed, refusal = REFUSED[case]
    add(1, 2)
    with pytest.raises(TrustError) as caught:
        _rollback(store, publisher, **changed)
    assert caught.value.refusal is refusal
    assert len(_row(store, publisher)) == 2


def test_rollback_to_what_is_not_there(store: FolderStore, publisher: Publisher, add: Any) -> None:
    """A channel that never pointed anywhere, or a release that does not exist, ends in an error that says so."""
    with pytest.raises(RegistryError) as caught:
        _rollback(store, publisher)
    assert "points nowhere" in caught.value.message
    add(2, 3)
    with pytest.raises(RegistryError) as caught:
        _rollback(store, publisher, to=1)
    assert "published are 2, 3" in caught.value.hint


def test_the_loser_of_a_race_is_told(store: FolderStore, publisher: Publisher, add: Any) -> None:
    """A rollback that races with a publisher does not take the channel from it."""
    add(1, 2)
    pending = [3]
    hooked = Hooked(store, before=lambda _: add(pending.pop()) if pending else None)
    with pytest.raises(ConflictError) as caught:
        _rollback(hooked, publisher)
    assert "release 3 first" in caught.value.message
    assert _row(store, publisher)[-1][:2] == (3, 3)


def test_a_missing_channel_lists_what_there_is(store: FolderStore, publisher: Publisher, add: Any) -> None:
    """Who asks for a channel or release that is not there is told what there is."""
    look = {"opener": publisher.opener, "line": LINE, "now": NOW, "seen": Seen()}
    with pytest.raises(RegistryError) as caught:
        fetch(store, channel=STABLE, **look)
    assert "nothing is published" in caught.value.hint
    add(1)
    with pytest.raises(RegistryError) as caught:
        fetch(store, channel=STABLE, **look)
    assert "demo has dev" in caught.value.hint
    with pytest.raises(RegistryError) as caught:
        fetch(store, version=2, **look)
    assert "published are 1" in caught.value.hint


def test_strange_names_in_a_row_are_no_moves(store: FolderStore, root: Path, publisher: Publisher, add: Any) -> None:
    """What is not named as a move is not taken for the last one."""
    add(1)
    (root / "channels/demo/dev/zzz.json").write_bytes(b"{}")
    (root / "channels/demo/dev/99999999999.json").write_bytes(b"{}")
    assert len(_row(store, publisher)) == 1
    assert fetch(store, opener=publisher.opener, line=LINE, now=NOW, seen=Seen(), channel=DEV)


def test_a_pointer_of_another_serial_is_refused(store: FolderStore, root: Path, publisher: Publisher, add: Any) -> None:
    """An old pointer copied to the end of the row is told from a move."""
    add(1, 2)
    row = root / "channels/demo/dev"
    (row / "0000000003.json").write_bytes((row / "0000000001.json").read_bytes())
    with pytest.raises(TrustError) as caught:
        channels.history(store, line=LINE, channel=DEV, opener=publisher.opener)
    assert caught.value.refusal is Refusal.SWAPPED
