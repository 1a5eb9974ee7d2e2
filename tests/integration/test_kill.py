"""Processes killed with SIGKILL at every step: readers never see half of anything, and a second run finishes the job."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.catalog.names import Channel
from pipeline.manifest.rules import Accepted, Seen
from pipeline.ports import keys
from pipeline.registry import state
from pipeline.registry.consume import fetch, releases
from pipeline.registry.folder import FolderStore
from pipeline.registry.publish import SignedRelease, publish
from pipeline.registry.pull import pull
from pipeline.registry.verify import verify_folder, verify_release
from tests.support.killed import killed_before_change
from tests.support.releases import LINE, NOW, SERVER, Publisher, flipped, listing, replace_file, save_release

DEV = Channel.DEV
ROOT = Path(__file__).parents[2]
MANY = 1000


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("key")


@pytest.fixture(scope="module")
def publisher(key: Path) -> Publisher:
    return Publisher(keys.load_or_create(key))


@pytest.fixture(scope="module")
def first(publisher: Publisher, tmp_path_factory: pytest.TempPathFactory) -> SignedRelease:
    return publisher.release(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def second(publisher: Publisher, tmp_path_factory: pytest.TempPathFactory) -> SignedRelease:
    folder = tmp_path_factory.mktemp("two")
    release = publisher.release(folder, 2, rows=2048)
    save_release(release, folder)
    return release


def _folder(release: SignedRelease) -> Path:
    return release.files[f"{SERVER}/config.json"].parents[1]


def _publish(root: Path, release: SignedRelease, publisher: Publisher) -> None:
    publish(FolderStore(root), release, channel=DEV, signer=publisher.sign, opener=publisher.opener, now=NOW)


def _fetch(root: Path, publisher: Publisher, version: int | None = None) -> Accepted:
    channel = DEV if version is None else None
    return fetch(
        FolderStore(root), opener=publisher.opener, line=LINE, seen=Seen(), now=NOW, channel=channel, version=version
    )


def _check_registry(root: Path, publisher: Publisher) -> int:
    """Check that every release that can be seen is whole; return where the channel points."""
    for version in releases(FolderStore(root), LINE):
        verify_release(FolderStore(root), _fetch(root, publisher, version))
    return _fetch(root, publisher).manifest.release.version


def _check_current(into: Path, publisher: Publisher) -> int:
    """Check that the active version is whole; return it."""
    current = into / "current"
    return verify_folder(
        current, opener=publisher.opener, line=LINE, seen=Seen(), now=NOW, variant=SERVER
    ).manifest.release.version


def _sweep(prepare: Callable[[], None], run: Callable[[], object], check: Callable[[], None]) -> int:
    """Kill `run` before its first, second, … change until it gets through; return how many changes it makes."""
    for number in itertools.count(1):
        prepare()
        if not killed_before_change(number, run):
            return number - 1
        check()
        assert number < MANY
    raise AssertionError


@pytest.fixture
def root(first: SignedRelease, publisher: Publisher, tmp_path: Path) -> Path:
    """A registry with release 1."""
    root = tmp_path / "registry"
    _publish(root, first, publisher)
    return root


def test_publishing_killed_before_any_change(
    root: Path, second: SignedRelease, publisher: Publisher, tmp_path: Path
) -> None:
    """Wherever a publisher is killed, the channel leads to a whole release, and publishing again finishes."""
    saved = root.rename(tmp_path / "saved")

    def prepare() -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(saved, root)

    def check() -> None:
        assert _check_registry(root, publisher) in {1, 2}
        _publish(root, second, publisher)
        assert _check_registry(root, publisher) == 2
        assert len(list(root.rglob(".new-*"))) <= 1  # the next writer into that folder removes it

    assert _sweep(prepare, lambda: _publish(root, second, publisher), check) > 10


def test_pulling_killed_before_any_change(
    root: Path, second: SignedRelease, publisher: Publisher, tmp_path: Path
) -> None:
    """Wherever a pull is killed, the active version is whole, and pulling again finishes and leaves nothing over."""
    store, into = FolderStore(root), tmp_path / "into"
    one = _fetch(root, publisher)
    _publish(root, second, publisher)
    two = _fetch(root, publisher)

    def prepare() -> None:
        shutil.rmtree(into, ignore_errors=True)
        pull(store, one, SERVER, into)

    def check() -> None:
        assert _check_current(into, publisher) in {1, 2}
        pull(store, two, SERVER, into)
        assert _check_current(into, publisher) == 2
        assert listing(into / "versions") == ["1", "2"]
        assert (into / "previous").readlink() == Path("versions/1")
        assert listing(into / ".partial") == []

    assert _sweep(prepare, lambda: pull(store, two, SERVER, into), check) > 10


def test_mending_killed_before_any_change(root: Path, publisher: Publisher, tmp_path: Path) -> None:
    """Wherever the mending of the active version is killed, `current` leads to its files, and mending finishes."""
    store, into = FolderStore(root), tmp_path / "into"
    one = _fetch(root, publisher)

    def prepare() -> None:
        shutil.rmtree(into, ignore_errors=True)
        pull(store, one, SERVER, into)
        replace_file(into / "current/config.json", flipped((into / "current/config.json").read_bytes()))

    def check() -> None:
        assert (into / "current/rank-0/model.safetensors").is_file()
        pull(store, one, SERVER, into)
        assert _check_current(into, publisher) == 1
        assert listing(into / "versions") == ["1"]

    assert _sweep(prepare, lambda: pull(store, one, SERVER, into), check) > 10


def test_remembering_killed_before_any_change(root: Path, publisher: Publisher, tmp_path: Path) -> None:
    """Wherever remembering is killed, what was seen before or after is there whole."""
    accepted = _fetch(root, publisher)
    path = tmp_path / "memory/state.json"

    def check() -> None:
        assert state.load(path) in (Seen(), accepted.seen)
        assert state.remember(path, accepted) == accepted.seen

    _sweep(lambda: shutil.rmtree(path.parent, ignore_errors=True), lambda: state.remember(path, accepted), check)


def _worker(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.support.worker", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


POINTS = [
    *(f"{when} {call}" for call in range(1, 8) for when in ("before", "after")),
    "progress 1000000",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_publisher_process_killed_at_each_step(
    point: str, root: Path, second: SignedRelease, publisher: Publisher, key: Path
) -> None:
    """Before and after each of three files, two indexes, the record and the pointer, and within a file: never half."""
    killed = _worker("publish", root, _folder(second), key, point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = point == "after 7"
    assert _check_registry(root, publisher) == (2 if done else 1)
    again = _worker("publish", root, _folder(second), key, "never 0")
    assert again.returncode == 0, again.stderr
    assert _check_registry(root, publisher) == 2
    assert len(FolderStore(root).names("channels/demo/dev/")) == 2


@pytest.mark.parametrize("point", ["before 1", "stream 1", "stream 70000", "progress 1000000"])
def test_a_puller_process_killed_within_a_file(
    point: str, root: Path, second: SignedRelease, publisher: Publisher, key: Path, tmp_path: Path
) -> None:
    """The active version stays, what came is kept, and the next pull goes on from there."""
    into = tmp_path / "into"
    assert _worker("pull", root, into, key, "never 0").returncode == 0
    _publish(root, second, publisher)
    killed = _worker("pull", root, into, key, point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (into / "current").readlink() == Path("versions/1")
    kept = [p.stat().st_size for p in (into / ".partial").iterdir()]
    if point == "progress 1000000":
        assert kept
        assert kept[0] > 0
    assert _worker("pull", root, into, key, "never 0").returncode == 0
    assert (into / "current").readlink() == Path("versions/2")
    verify_folder(into / "current", opener=publisher.opener, line=LINE, seen=Seen(), now=NOW)
