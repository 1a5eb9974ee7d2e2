"""Pulling: a version appears whole or not at all, is activated in one step, and is never fetched twice."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalog.names import Channel
from pipeline.errors import ConflictError, PipelineError, Refusal, RegistryError, StageError, TrustError
from pipeline.manifest.rules import Accepted, Seen
from pipeline.registry import record
from pipeline.registry.consume import fetch
from pipeline.registry.folder import FolderStore
from pipeline.registry.publish import publish
from pipeline.registry.pull import pull
from pipeline.registry.store import Progress, Store
from pipeline.registry.verify import verify_folder
from tests.support.releases import (
    EDGE,
    LINE,
    NOW,
    SERVER,
    Publisher,
    flipped,
    gguf_bytes,
    hostile_gguf,
    listing,
    open_files,
    replace_file,
    tree,
)
from tests.support.stores import Hooked, Stopping


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "registry")


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "into"


@pytest.fixture
def add(store: FolderStore, publisher: Publisher, tmp_path: Path) -> Callable[..., Accepted]:
    """Publish a version and fetch it."""

    def publish_and_fetch(version: int, **options: Any) -> Accepted:
        release = publisher.release(tmp_path / f"release-{version}", version, **options)
        publish(store, release, channel=Channel.DEV, signer=publisher.sign, opener=publisher.opener, now=NOW)
        return fetch(store, opener=publisher.opener, line=LINE, seen=Seen(), now=NOW, version=version)

    return publish_and_fetch


def _blob(tmp_path: Path, accepted: Accepted, variant: str = EDGE) -> Path:
    return tmp_path / "registry/blobs/sha256" / accepted.manifest.variant(variant).files[0].sha256


def _verify(into: Path, publisher: Publisher, variant: str = EDGE) -> Accepted:
    return verify_folder(into / "current", opener=publisher.opener, line=LINE, seen=Seen(), now=NOW, variant=variant)


def _opens(store: Hooked) -> list[str]:
    return [call for call in store.calls if call.startswith("open_blob")]


def test_a_pulled_variant_verifies(
    store: FolderStore, publisher: Publisher, into: Path, add: Callable[..., Accepted]
) -> None:
    """Files, signature and record are there, `current` leads to them, nothing else is left."""
    accepted = add(1)
    for variant in (SERVER, EDGE):
        assert pull(store, accepted, variant, into).folder == into / "versions/1"
        assert _verify(into, publisher, variant).digest == accepted.digest
    assert set(tree(into)) == {
        ".lock",
        ".partial",
        "current",
        "versions",
        "versions/1",
        "versions/1/model.gguf",
        "versions/1/model.sig",
        "versions/1/release.json",
    }
    assert tree(into)["current"] == "versions/1"


def test_a_tuned_variant_is_pulled_by_its_name(
    tmp_path: Path, store: FolderStore, publisher: Publisher, into: Path, add: Callable[..., Accepted]
) -> None:
    """It is published, pulled and verified as any variant; it is not taken for the variant it stands beside."""
    name = f"{EDGE}+lookup"
    accepted = add(1, files={f"{name}/model.gguf": gguf_bytes(tmp_path, 7)})
    pull(store, accepted, name, into)
    assert _verify(into, publisher, name).digest == accepted.digest
    with pytest.raises(TrustError) as refused:
        _verify(into, publisher, EDGE)
    assert refused.value.refusal is Refusal.SWAPPED


def test_pulling_again_fetches_nothing(store: FolderStore, into: Path, add: Callable[..., Accepted]) -> None:
    """What is there and right is left as it is, down to the inode."""
    accepted = add(1)
    pull(store, accepted, SERVER, into)
    before, inode = tree(into), (into / "versions/1/config.json").stat().st_ino
    hooked = Hooked(store)
    pull(hooked, accepted, SERVER, into)
    assert hooked.calls == []
    assert tree(into) == before
    assert (into / "versions/1/config.json").stat().st_ino == inode


def test_versions_follow_one_another(store: FolderStore, into: Path, add: Callable[..., Accepted]) -> None:
    """`previous` is the version before; older ones are removed; going back swaps the two."""
    first, second, third = add(1), add(2), add(3)
    links: list[tuple[Any, Any, list[str]]] = []
    for accepted in (first, second, third, second):
        pull(store, accepted, EDGE, into)
        there = tree(into)
        links.append((there["current"], there.get("previous"), listing(into / "versions")))
    assert links == [
        ("versions/1", None, ["1"]),
        ("versions/2", "versions/1", ["1", "2"]),
        ("versions/3", "versions/2", ["2", "3"]),
        ("versions/2", "versions/3", ["2", "3"]),
    ]


def test_what_a_kept_version_has_is_linked(store: FolderStore, into: Path, add: Callable[..., Accepted]) -> None:
    """A file that did not change is not fetched again and takes no room twice."""
    first, second = add(1), add(2)
    pull(store, first, SERVER, into)
    hooked = Hooked(store)
    pull(hooked, second, SERVER, into)
    assert "open_blob 0" not in _opens(hooked)
    assert (into / "versions/1/config.json").samefile(into / "versions/2/config.json")


def test_what_a_kept_version_has_is_checked_again(
    store: FolderStore, publisher: Publisher, into: Path, add: Callable[..., Accepted]
) -> None:
    """A file that was changed on disk is not carried into the next version."""
    first, second = add(1), add(2)
    pull(store, first, SERVER, into)
    replace_file(into / "versions/1/config.json", b'{"hidden_size": 999}')
    hooked = Hooked(store)
    pull(hooked, second, SERVER, into)
    assert _opens(hooked).count("open_blob 0") == 1
    _verify(into, publisher, SERVER)


GARBAGE = {
    "garbage": b"{",
    "empty": b"",
    "nothing signed": b'{"manifest": {}, "variants": {}}',
    "not a bundle": b'{"manifest": {"dsseEnvelope": 1}, "variants": {}}',
}


@pytest.mark.parametrize("case", GARBAGE)
def test_a_kept_version_may_be_garbage(
    case: str, store: FolderStore, publisher: Publisher, into: Path, add: Callable[..., Accepted]
) -> None:
    """What an older version says of itself is only a hint, and a bad one costs a download."""
    pull(store, add(1), SERVER, into)
    replace_file(into / "versions/1/release.json", GARBAGE[case])
    pull(store, add(2), SERVER, into)
    _verify(into, publisher, SERVER)


def _flip(path: Path) -> None:
    replace_file(path, flipped(path.read_bytes()))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit changed": lambda v: _flip(v / "config.json"),
    "a file missing": lambda v: (v / "config.json").unlink(),
    "a file extra": lambda v: (v / "evil.py").touch(),
    "a folder extra": lambda v: (v / "evil").mkdir(),
    "a link planted": lambda v: ((v / "config.json").unlink(), (v / "config.json").symlink_to("/etc/passwd")),
    "signature missing": lambda v: (v / "model.sig").unlink(),
    "record garbage": lambda v: (v / "release.json").write_bytes(b"{"),
    "an inner folder is a link": lambda v: (
        (v / "rank-0").rename(v.parent.parent / "r"),
        (v / "rank-0").symlink_to("/"),
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_version_is_mended(
    case: str, store: FolderStore, publisher: Publisher, into: Path, add: Callable[..., Accepted]
) -> None:
    """Pulling the active version again puts it right, fetching only what is wrong."""
    accepted = add(1)
    pull(store, accepted, SERVER, into)
    good = tree(into / "versions/1")
    DAMAGE[case](into / "versions/1")
    pull(store, accepted, SERVER, into)
    assert tree(into / "versions/1") == good
    assert listing(into / "versions") == ["1"]
    _verify(into, publisher, SERVER)


def _cut(store: Store, count: int, stop: Callable[[], None] = lambda: None) -> Hooked:
    return Hooked(store, stream=lambda f: Stopping(f, count, stop))  # type: ignore[arg-type,return-value]


def _partials(into: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (into / ".partial").iterdir()}


@pytest.mark.parametrize("count", [0, 1, 4000])
def test_an_interrupted_download_goes_on(
    count: int, store: FolderStore, publisher: Publisher, into: Path, tmp_path: Path, add: Callable[..., Accepted]
) -> None:
    """What came is kept, the rest is asked for as a range, and the whole is verified."""
    accepted = add(1)
    with pytest.raises(RegistryError) as caught:
        pull(_cut(store, count), accepted, EDGE, into)
    assert "goes on" in caught.value.hint
    assert _partials(into) == {_blob(tmp_path, accepted).name: _blob(tmp_path, accepted).read_bytes()[:count]}
    assert not (into / "current").exists()
    hooked = Hooked(store)
    pull(hooked, accepted, EDGE, into)
    assert _opens(hooked) == [f"open_blob {count}"]
    assert _partials(into) == {}
    _verify(into, publisher)


def test_a_whole_partial_file_is_not_fetched_again(
    store: FolderStore, publisher: Publisher, into: Path, tmp_path: Path, add: Callable[..., Accepted]
) -> None:
    """A download that was cut right before it was put in place needs no network."""
    accepted = add(1)
    blob = _blob(tmp_path, accepted)
    (into / ".partial").mkdir(parents=True)
    (into / ".partial" / blob.name).write_bytes(blob.read_bytes())
    hooked = Hooked(store)
    pull(hooked, accepted, EDGE, into)
    assert _opens(hooked) == []
    _verify(into, publisher)


def test_a_wrong_beginning_is_thrown_away(
    store: FolderStore, publisher: Publisher, into: Path, tmp_path: Path, add: Callable[..., Accepted]
) -> None:
    """A partial file of other bytes ends in a refusal, does not stay, and the next pull starts afresh."""
    accepted = add(1)
    (into / ".partial").mkdir(parents=True)
    (into / ".partial" / _blob(tmp_path, accepted).name).write_bytes(b"x" * 1000)
    with pytest.raises(TrustError) as caught:
        pull(store, accepted, EDGE, into)
    assert caught.value.refusal is Refusal.TAMPERED
    assert _partials(into) == {}
    pull(store, accepted, EDGE, into)
    _verify(into, publisher)


def test_a_partial_file_that_is_too_long_starts_afresh(
    store: FolderStore, publisher: Publisher, into: Path, tmp_path: Path, add: Callable[..., Accepted]
) -> None:
    """More bytes than the manifest says are not a beginning."""
    accepted = add(1)
    blob = _blob(tmp_path, accepted)
    (into / ".partial").mkdir(parents=True)
    (into / ".partial" / blob.name).write_bytes(blob.read_bytes() + b"more")
    pull(store, accepted, EDGE, into)
    _verify(into, publisher)


class _Endless:
    """A stream that never ends."""

    def readinto(self, buffer: memoryview) -> int:
        buffer[:] = b"x" * len(buffer)
        return len(buffer)


def test_no_more_is_written_than_the_manifest_says(
    store: FolderStore, into: Path, add: Callable[..., Accepted]
) -> None:
    """A registry that never stops sending fills no disk."""
    accepted = add(1)
    size = accepted.manifest.variant(EDGE).files[0].size
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        with pytest.raises(TrustError) as caught:
            pull(Hooked(store, stream=lambda _: _Endless()), accepted, EDGE, into)  # type: ignore[arg-type,return-value]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.refusal is Refusal.TAMPERED
    assert _partials(into) == {}


REFUSED: dict[str, tuple[Refusal, Callable[[Path], object]]] = {
    "missing": (Refusal.MISSING_FILE, Path.unlink),
    "cut": (Refusal.TAMPERED, lambda p: replace_file(p, p.read_bytes()[:-1])),
    "longer": (Refusal.TAMPERED, lambda p: replace_file(p, p.read_bytes() + b"x")),
    "a bit changed": (Refusal.TAMPERED, lambda p: replace_file(p, flipped(p.read_bytes()))),
    "a link": (Refusal.SYMLINK, lambda p: (p.rename(p.with_suffix(".x")), p.symlink_to(p.with_suffix(".x")))),
    "a pipe": (Refusal.TAMPERED, lambda p: (p.unlink(), os.mkfifo(p))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_file_activates_nothing(
    case: str, store: FolderStore, publisher: Publisher, into: Path, tmp_path: Path, add: Callable[..., Accepted]
) -> None:
    """Whatever is wrong with a file, the active version stays and the bad bytes do not."""
    pull(store, add(1), EDGE, into)
    second = add(2)
    refusal, damage = REFUSED[case]
    damage(_blob(tmp_path, second))
    before = open_files()
    with pytest.raises(TrustError) as caught:
        pull(store, second, EDGE, into)
    assert caught.value.refusal is refusal
    assert tree(into)["current"] == "versions/1"
    assert _partials(into) == {}
    assert not (into / "versions/2").exists()
    assert open_files() == before
    _verify(into, publisher)


def test_a_hostile_model_does_not_stay(
    store: FolderStore, publisher: Publisher, into: Path, add: Callable[..., Accepted]
) -> None:
    """A model whose header no loader should see is refused though rightly signed, and removed."""
    pull(store, add(1), EDGE, into)
    second = add(2, files={f"{EDGE}/model.gguf": hostile_gguf()})
    with pytest.raises(TrustError) as caught:
        pull(store, second, EDGE, into)
    assert caught.value.refusal is Refusal.HOSTILE_MODEL
    assert listing(into / "versions") == ["1"]
    assert _partials(into) == {}
    _verify(into, publisher)


PLANTED = {
    "versions": "versions",
    "the version": "versions/1",
    "the version in the making": "versions/.new-1",
    "partial": ".partial",
    "lock": ".lock",
}


@pytest.mark.parametrize("case", PLANTED)
def test_nothing_is_written_through_a_planted_link(
    case: str, store: FolderStore, into: Path, tmp_path: Path, add: Callable[..., Accepted]
) -> None:
    """A link in the place of one of our own names is refused, and what it leads to stays untouched."""
    accepted = add(1)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_bytes(b"1")
    place = into / PLANTED[case]
    place.parent.mkdir(parents=True)
    place.symlink_to(victim)
    with pytest.raises(TrustError) as caught:
        pull(store, accepted, EDGE, into)
    assert caught.value.refusal is Refusal.SYMLINK
    assert tree(victim) == {"precious": b"1"}


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder"])
def test_a_partial_file_that_is_something_else(
    kind: str, store: FolderStore, into: Path, tmp_path: Path, add: Callable[..., Accepted]
) -> None:
    """A link in a partial file's place is refused, anything else is put aside; no other file is written to."""
    accepted = add(1)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    place = into / ".partial" / _blob(tmp_path, accepted).name
    place.parent.mkdir(parents=True)
    make: dict[str, Callable[[], object]] = {
        "link": lambda: place.symlink_to(victim),
        "hard link": lambda: os.link(victim, place),
        "pipe": lambda: os.mkfifo(place),
        "folder": place.mkdir,
    }
    make[kind]()
    try:
        pull(store, accepted, EDGE, into)
    except PipelineError as e:
        assert kind in {"link", "folder"}
        assert isinstance(e, StageError) or e.exit_code == Refusal.SYMLINK
    assert victim.read_bytes() == b"precious"


def test_the_links_are_replaced_not_followed(
    store: FolderStore, into: Path, tmp_path: Path, add: Callable[..., Accepted]
) -> None:
    """`current` and `previous` that lead elsewhere are replaced; where they led stays untouched."""
    victim = tmp_path / "victim"
    victim.mkdir()
    into.mkdir()
    for link in ("current", "previous", ".new-current"):
        (into / link).symlink_to(victim)
    pull(store, add(1), EDGE, into)
    assert tree(into)["current"] == "versions/1"
    assert tree(victim) == {}


def test_leftovers_in_the_making_are_tidied(
    store: FolderStore, publisher: Publisher, into: Path, tmp_path: Path, add: Callable[..., Accepted]
) -> None:
    """What lies in an unfinished version and does not belong there goes, links among it."""
    making = into / "versions/.new-1"
    (making / "rank-0").mkdir(parents=True)
    (making / "rank-0/evil").touch()
    (making / "evil").mkdir()
    (making / "config.json").symlink_to("/etc/passwd")
    (into / "versions/.new-9").mkdir()
    pull(store, add(1), SERVER, into)
    assert listing(into / "versions") == ["1"]
    _verify(into, publisher, SERVER)


def test_no_room_is_said_beforehand(store: FolderStore, into: Path, add: Callable[..., Accepted]) -> None:
    """Without room for what is to be fetched nothing is fetched; with just enough it is."""
    accepted = add(1)
    size = accepted.manifest.variant(EDGE).files[0].size
    hooked = Hooked(store)
    with pytest.raises(StageError) as caught:
        pull(hooked, accepted, EDGE, into, free=lambda _: size - 1)
    assert str(size) in caught.value.message
    assert _opens(hooked) == []
    pull(store, accepted, EDGE, into, free=lambda _: size)


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Let no file of this process grow beyond a size."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_a_disk_that_fills_up_is_one_error(
    store: FolderStore,
    publisher: Publisher,
    into: Path,
    add: Callable[..., Accepted],
    small_disk: Callable[[int], None],
) -> None:
    """A write that fails on the way ends in one error with a hint; the active version stays; the next pull goes on."""
    first, second = add(1), add(2)
    pull(store, first, EDGE, into)
    small_disk(3000)
    with pytest.raises(StageError) as caught:
        pull(store, second, EDGE, into)
    small_disk(resource.RLIM_INFINITY)
    assert caught.value.__cause__.errno == errno.EFBIG  # type: ignore[union-attr]
    assert "free space" in caught.value.hint
    _verify(into, publisher)
    pull(store, second, EDGE, into)
    assert tree(into)["current"] == "versions/2"
    _verify(into, publisher)


def test_two_pulls_into_one_folder_exclude_each_other(
    store: FolderStore, into: Path, add: Callable[..., Accepted]
) -> None:
    """The second is told at once, and may go when the first has ended."""
    accepted = add(1)
    into.mkdir()
    with (into / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConflictError) as caught:
            pull(store, accepted, EDGE, into)
        assert "another pull" in caught.value.message
    pull(store, accepted, EDGE, into)


def test_an_unknown_variant_lists_what_there_is(store: FolderStore, into: Path, add: Callable[..., Accepted]) -> None:
    """Who asks for a variant this release lacks is told which it has, and nothing is written."""
    with pytest.raises(RegistryError) as caught:
        pull(store, add(1), "mid-tier-riscv64", into)
    assert EDGE in caught.value.hint
    assert not into.exists()


def test_a_place_that_cannot_be_used_is_explained(
    store: FolderStore, tmp_path: Path, add: Callable[..., Accepted]
) -> None:
    """A file where the folder should be, or a folder where a link should be, ends in one error."""
    accepted = add(1)
    (tmp_path / "file").touch()
    (tmp_path / "taken/current/full").mkdir(parents=True)
    for place in ("file", "taken"):
        with pytest.raises(StageError) as caught:
            pull(store, accepted, EDGE, tmp_path / place)
        assert caught.value.hint


def test_what_is_beside_the_files_is_what_was_accepted(
    store: FolderStore, into: Path, tmp_path: Path, add: Callable[..., Accepted]
) -> None:
    """The record and signature come from the accepted release, whatever the registry says by then."""
    accepted = add(1)
    name = tmp_path / "registry/releases/demo/0000000001.json"
    replace_file(name, b"{}")
    folder = pull(store, accepted, EDGE, into).folder
    assert (folder / "release.json").read_bytes() == record.encode(accepted.bundles)
    assert (folder / "model.sig").read_bytes() == accepted.bundles.variants[EDGE]


def _recorder(seen: list[tuple[int, int, str]]) -> Progress:
    return lambda *report: seen.append(report)


def test_progress_ends_at_the_variants_size(store: FolderStore, into: Path, add: Callable[..., Accepted]) -> None:
    """Progress rises to the variant's size, whether files are fetched, linked or there."""
    for version in (1, 2):
        accepted = add(version)
        seen: list[tuple[int, int, str]] = []
        pull(store, accepted, SERVER, into, _recorder(seen))
        total = sum(f.size for f in accepted.manifest.variant(SERVER).files)
        assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
        assert seen[-1][:2] == (total, total)


def test_files_with_the_same_bytes_are_fetched_once(
    store: FolderStore, publisher: Publisher, into: Path, add: Callable[..., Accepted]
) -> None:
    """Two names for one content cost one download."""
    same = {f"{SERVER}/a.json": b"[1, 2]", f"{SERVER}/b/c.json": b"[1, 2]"}
    hooked = Hooked(store)
    pull(hooked, add(1, files=same), SERVER, into)
    assert len(_opens(hooked)) == 3
    _verify(into, publisher, SERVER)


def test_a_runtimes_programs_can_be_run(
    add: Callable[..., Accepted], store: FolderStore, publisher: Publisher, into: Path
) -> None:
    """A runtime is pulled like a variant, and its files are executable; a variant's are not."""
    release = add(1, files={"runtime-arm64/llama-server": b"#!/bin/sh\n"})
    folder = pull(store, release, "runtime-arm64", into).folder
    assert (folder / "llama-server").stat().st_mode & 0o777 == 0o755
    verify_folder(into / "current", opener=publisher.opener, line=LINE, seen=Seen(), now=NOW)
    other = into.with_name("variant")
    assert (pull(store, release, EDGE, other).folder / "model.gguf").stat().st_mode & 0o111 == 0


def test_what_a_release_does_not_have_is_named(add: Callable[..., Accepted], store: FolderStore, into: Path) -> None:
    """Asking for a runtime that is not there lists what is."""
    with pytest.raises(RegistryError, match="has no variant runtime-riscv64") as e:
        pull(store, add(1), "runtime-riscv64", into)
    assert EDGE in e.value.hint
