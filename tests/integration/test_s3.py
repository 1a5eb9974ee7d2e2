"""A registry in a real S3 server: conditional writes, racing and killed publishers, servers that go away.

Any S3 server with an empty bucket does, with the standard AWS variables and S3_TEST_BUCKET set.
S3_TEST_VERSIONED_BUCKET names a bucket with versioning, where there is one.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline.catalog.names import Channel
from pipeline.errors import ConflictError, PipelineError, RegistryError
from pipeline.manifest.encoding import sha256
from pipeline.manifest.rules import Accepted, Seen
from pipeline.ports import keys
from pipeline.registry import layout
from pipeline.registry.consume import fetch, releases
from pipeline.registry.publish import SignedRelease, publish
from pipeline.registry.pull import pull
from pipeline.registry.s3 import Limits, S3Store, connect
from pipeline.registry.store import Store, open_store, silent
from pipeline.registry.verify import verify_folder, verify_release
from tests.support.changed import WORDS, layers, model
from tests.support.contract import DATA, DIGEST, StoreContract, overtaken
from tests.support.proxy import Proxy
from tests.support.releases import EDGE, LINE, NOW, Publisher, save_release
from tests.support.stores import Hooked

VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_TEST_BUCKET")
MISSING = [name for name in VARIABLES if not os.environ.get(name)]
pytestmark = [
    pytest.mark.s3,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"not set: {', '.join(MISSING)}; set them for any S3 server with an empty bucket, then: pytest -m s3",
    ),
]

ROOT = Path(__file__).parents[2]
BUCKET = os.environ.get("S3_TEST_BUCKET", "")
VERSIONED = os.environ.get("S3_TEST_VERSIONED_BUCKET", "")
DEV = Channel.DEV
QUICK = Limits(connect=2, read=5, attempts=2, part=5 << 20)
ROWS = 8192


@pytest.fixture
def prefix() -> str:
    """A part of the bucket that no other test uses."""
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture
def store(prefix: str) -> Iterator[S3Store]:
    store = connect(BUCKET, prefix, QUICK)
    yield store
    there = [f"{prefix}/{name}" for folder in ("blobs/", "releases/", "channels/") for name in store.names(folder)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.client.delete_object(Bucket=BUCKET, Key=key), there))


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("key")


@pytest.fixture(scope="module")
def publisher(key: Path) -> Publisher:
    return Publisher(keys.load_or_create(key))


def _publish(store: Store, release: SignedRelease, publisher: Publisher) -> None:
    publish(store, release, channel=DEV, signer=publisher.sign, opener=publisher.opener, now=NOW)


def _fetch(store: Store, publisher: Publisher, **how: int) -> Accepted:
    channel = None if how else DEV
    return fetch(store, opener=publisher.opener, line=LINE, seen=Seen(), now=NOW, channel=channel, **how)  # type: ignore[arg-type]


def _check(store: Store, publisher: Publisher) -> list[int]:
    """Check that every release that can be seen is whole; return their versions."""
    versions = releases(store, LINE)
    for version in versions:
        verify_release(store, _fetch(store, publisher, version=version))
    return versions


class TestRealS3(StoreContract):
    """A real server keeps the rules of every store."""


def test_a_release_goes_there_and_back(store: S3Store, publisher: Publisher, tmp_path: Path) -> None:
    """Published with a file of several parts, verified in place, pulled and verified on disk; again is harmless."""
    release = publisher.release(tmp_path / "one", rows=ROWS)
    for _ in range(2):
        _publish(store, release, publisher)
    accepted = _fetch(store, publisher)
    verify_release(store, accepted)
    pull(store, accepted, EDGE, tmp_path / "into")
    verify_folder(tmp_path / "into/current", opener=publisher.opener, line=LINE, seen=accepted.seen, now=NOW)
    assert len(store.names("channels/demo/dev/")) == 1


def test_an_update_moves_what_changed(store: S3Store, publisher: Publisher, tmp_path: Path) -> None:
    """Ranges of the new file come from the server, what did not change from the disk, and the folder verifies."""
    before, after = model(layers(40), words=WORDS), model(layers(40, t7=107, t8=108, t30=130), words=WORDS)
    for version, data in ((1, before), (2, after)):
        files = {f"{EDGE}/model.gguf": data}
        _publish(store, publisher.release(tmp_path / f"release-{version}", version, files=files), publisher)
        hooked = Hooked(store)
        done = pull(hooked, _fetch(store, publisher), EDGE, tmp_path / "into")
    ranges = [call for call in hooked.calls if call.startswith("open_blob")]
    assert len(ranges) == 3  # the index, two neighbours, one tensor
    assert 3 * 40 * 1024 <= done.fetched < 3 * 40 * 1024 + 8192
    assert (tmp_path / "into/current/model.gguf").read_bytes() == after
    verify_folder(tmp_path / "into/current", opener=publisher.opener, line=LINE, seen=Seen(), now=NOW)


def test_many_names_come_in_pages(store: S3Store, prefix: str) -> None:
    """A listing of more than a page's thousand names is complete."""
    names = [f"{prefix}/{layout.release(LINE, number)}" for number in range(1, 1003)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: store.client.put_object(Bucket=BUCKET, Key=name, Body=b""), names))
    assert releases(store, LINE) == list(range(1, 1003))


def test_one_of_many_racing_writers_wins(store: S3Store, prefix: str) -> None:
    """Of eight writers that create one object at once exactly one succeeds, and its bytes are there."""
    barrier, won, lost = threading.Barrier(8), [], []
    stores = [connect(BUCKET, prefix, QUICK) for _ in range(8)]

    def write(number: int) -> None:
        barrier.wait()
        try:
            stores[number].create(layout.release(LINE, 1), b"%d" % number)
            won.append(number)
        except ConflictError:
            lost.append(number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert store.read(layout.release(LINE, 1), 9) == b"%d" % won[0]


def test_a_writer_that_is_overtaken_is_told(store: S3Store, prefix: str) -> None:
    """The server decides who was first, not the look taken before."""
    name = layout.release(LINE, 1)
    mine = connect(BUCKET, prefix, QUICK)
    overtaken(mine.client, BUCKET, f"{prefix}/{name}")
    with pytest.raises(ConflictError):
        mine.create(name, b"mine")
    assert store.read(name, 99) == b"another's"


def test_a_bucket_with_versions_keeps_the_first(publisher: Publisher, prefix: str) -> None:
    """Where the server may ignore the condition, an object that exists is still not written over."""
    if not VERSIONED:
        pytest.skip("S3_TEST_VERSIONED_BUCKET is not set")
    store = connect(VERSIONED, prefix, QUICK)
    store.create(layout.release(LINE, 1), b"one")
    with pytest.raises(ConflictError):
        store.create(layout.release(LINE, 1), b"two")
    assert store.read(layout.release(LINE, 1), 9) == b"one"


def _start(url: str, release: Path, key: Path, point: str = "never 0") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.worker", "publish", url, str(release), str(key), point],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(*workers: subprocess.Popen[str]) -> list[tuple[int, str]]:
    return [(w.returncode, said) for w in workers for _, said in [w.communicate()]]


def _saved(publisher: Publisher, folder: Path, version: int, seed: int, rows: int = 8) -> Path:
    save_release(publisher.release(folder, version, seed=seed, rows=rows), folder)
    return folder


def test_two_publisher_processes_race_for_a_version(
    store: S3Store, publisher: Publisher, key: Path, tmp_path: Path
) -> None:
    """Two contents under one version: one process wins, the other is told; what is there is one of them, whole."""
    folders = [_saved(publisher, tmp_path / str(seed), 1, seed) for seed in (1, 2)]
    results = _finish(*[_start(store.url, folder, key) for folder in folders])
    assert sorted(code for code, _ in results) == [0, ConflictError.exit_code], results
    loser = next(said for code, said in results if code)
    assert "params.yaml to 2" in loser
    assert _check(store, publisher) == [1]


def test_two_publisher_processes_race_for_a_channel(
    store: S3Store, publisher: Publisher, key: Path, tmp_path: Path
) -> None:
    """Two versions at once: whoever loses is told or was simply first; the channel leads to a whole release."""
    folders = [_saved(publisher, tmp_path / str(version), version, version) for version in (1, 2)]
    results = _finish(*[_start(store.url, folder, key) for folder in folders])
    assert {code for code, _ in results} <= {0, ConflictError.exit_code}, results
    assert 0 in {code for code, _ in results}
    versions = _check(store, publisher)
    winner = _fetch(store, publisher).manifest.release.version
    assert results[winner - 1][0] == 0
    assert winner in versions


@pytest.mark.parametrize("point", [f"{when} {call}" for call in range(1, 8) for when in ("before", "after")])
def test_a_publisher_killed_at_each_step(
    point: str, store: S3Store, publisher: Publisher, key: Path, tmp_path: Path
) -> None:
    """Before and after each of three files, two indexes, the record and the pointer: never half a release."""
    folder = _saved(publisher, tmp_path / "one", 1, 1)
    ((code, said),) = _finish(_start(store.url, folder, key, point))
    assert code == -signal.SIGKILL, said
    assert _check(store, publisher) == ([1] if point in {"after 6", "before 7", "after 7"} else [])
    ((code, said),) = _finish(_start(store.url, folder, key))
    assert code == 0, said
    assert _check(store, publisher) == [1]
    assert len(store.names("channels/demo/dev/")) == 1


def test_a_publisher_killed_within_a_file(store: S3Store, publisher: Publisher, key: Path, tmp_path: Path) -> None:
    """A file that was cut within is not there, and goes up whole the next time."""
    folder = _saved(publisher, tmp_path / "one", 1, 1, ROWS * 10)
    ((code, said),) = _finish(_start(store.url, folder, key, "progress 8000000"))
    assert code == -signal.SIGKILL, said
    assert not [name for name in store.names("blobs/") if (store.blob_size(name[-64:]) or 0) > 10**6]
    ((code, said),) = _finish(_start(store.url, folder, key))
    assert code == 0, said
    assert _check(store, publisher) == [1]


@pytest.mark.parametrize(
    ("name", "says"),
    [("AWS_SECRET_ACCESS_KEY", "secret key is wrong"), ("AWS_ACCESS_KEY_ID", "access key is unknown")],
)
def test_wrong_credentials(
    name: str, says: str, prefix: str, monkeypatch: pytest.MonkeyPatch, publisher: Publisher, tmp_path: Path
) -> None:
    """A wrong secret and an unknown key are told apart, and no secret is repeated."""
    monkeypatch.setenv(name, "not-the-right-one")
    with pytest.raises(RegistryError) as caught:
        _publish(connect(BUCKET, prefix, QUICK), publisher.release(tmp_path / "one"), publisher)
    assert says in caught.value.message
    assert "not-the-right-one" not in caught.value.message + caught.value.hint


def test_a_bucket_that_is_not_there(prefix: str) -> None:
    """A missing bucket is said to be missing, for reading and writing."""
    store = connect("no-such-bucket-here", prefix, QUICK)
    for call in (lambda: store.names("releases/demo/"), lambda: store.create(layout.release(LINE, 1), b"")):
        with pytest.raises(RegistryError) as caught:
            call()
        assert "does not exist" in caught.value.message


def _target() -> tuple[str, int]:
    parts = urlsplit(os.environ["AWS_ENDPOINT_URL_S3"])
    return parts.hostname or "", parts.port or 80


@pytest.mark.parametrize("budget", [100_000, 9_000_000])
def test_a_server_gone_in_mid_upload(
    budget: int, store: S3Store, prefix: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The connection is cut and nobody answers any more: one error, nothing half is visible, again finishes."""
    release = publisher.release(tmp_path / "one", rows=ROWS * 2)
    with Proxy(_target(), budget, up=True) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        with pytest.raises(RegistryError) as caught:
            _publish(connect(BUCKET, prefix, QUICK), release, publisher)
        assert proxy.cut
    assert "went away" in caught.value.message
    assert not isinstance(caught.value, ConflictError)
    assert releases(store, LINE) == []
    _publish(store, release, publisher)
    assert _check(store, publisher) == [1]


def test_an_upload_survives_one_cut(
    store: S3Store, prefix: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A connection that breaks once is tried again without anyone noticing."""
    release = publisher.release(tmp_path / "one", rows=ROWS)
    with Proxy(_target(), 2_000_000, up=True, stays=True) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        _publish(connect(BUCKET, prefix, QUICK), release, publisher)
        assert proxy.cut
    assert _check(store, publisher) == [1]


def test_a_download_goes_on_after_the_server_went_away(
    store: S3Store, prefix: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What came before the cut is kept, and the next pull asks for the rest only."""
    _publish(store, publisher.release(tmp_path / "one", rows=ROWS), publisher)
    accepted, into = _fetch(store, publisher), tmp_path / "into"
    with Proxy(_target(), 3_000_000, up=False) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        with pytest.raises(RegistryError) as caught:
            pull(connect(BUCKET, prefix, QUICK), accepted, EDGE, into)
        assert proxy.cut
    assert "went away" in caught.value.message
    (partial,) = (into / ".partial").iterdir()
    have = partial.stat().st_size
    assert 10**6 < have < accepted.manifest.variant(EDGE).files[0].size
    hooked = Hooked(store)
    pull(hooked, accepted, EDGE, into)
    assert hooked.calls == [f"open_blob {have}"]
    verify_folder(into / "current", opener=publisher.opener, line=LINE, seen=Seen(), now=NOW)


def test_a_download_survives_one_cut(
    store: S3Store, prefix: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A connection that breaks once is taken up where it broke."""
    _publish(store, publisher.release(tmp_path / "one", rows=ROWS), publisher)
    accepted, into = _fetch(store, publisher), tmp_path / "into"
    with Proxy(_target(), 3_000_000, up=False, stays=True) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        pull(connect(BUCKET, prefix, QUICK), accepted, EDGE, into)
        assert proxy.cut
    verify_folder(into / "current", opener=publisher.opener, line=LINE, seen=Seen(), now=NOW)


def _calls(store: S3Store, source: Path) -> list[object]:
    return [
        lambda: store.names("releases/demo/"),
        lambda: store.read(layout.release(LINE, 1), 9),
        lambda: store.create(layout.release(LINE, 1), b""),
        lambda: store.put_blob(DIGEST, source, silent),
    ]


@pytest.mark.parametrize("kind", ["nobody listens", "nobody answers"])
def test_a_server_that_cannot_be_reached(
    kind: str, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A dead server ends in one clear error, whether it refuses the connection or never says a word."""
    (tmp_path / "f").write_bytes(DATA)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "nobody answers":
            listener.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{listener.getsockname()[1]}")
        store = connect(BUCKET, prefix, Limits(connect=1, read=1, attempts=2))
        for call in _calls(store, tmp_path / "f"):
            with pytest.raises(RegistryError) as caught:
                call()  # type: ignore[operator]
            assert "cannot be reached" in caught.value.message
            assert "AWS_ENDPOINT_URL_S3" in caught.value.hint


def test_the_address_is_all_a_user_gives(store: S3Store, publisher: Publisher, tmp_path: Path) -> None:
    """`s3://bucket/prefix` with the standard variables is the same registry."""
    _publish(open_store(store.url), publisher.release(tmp_path / "one"), publisher)
    assert _check(store, publisher) == [1]


def test_a_blob_changed_on_the_server_is_refused(
    store: S3Store, prefix: str, publisher: Publisher, tmp_path: Path
) -> None:
    """Whatever a server returns is checked against the manifest, and nothing is activated."""
    _publish(store, publisher.release(tmp_path / "one"), publisher)
    accepted = _fetch(store, publisher)
    wanted = accepted.manifest.variant(EDGE).files[0]
    store.client.put_object(Bucket=BUCKET, Key=f"{prefix}/{layout.blob(wanted.sha256)}", Body=b"x" * wanted.size)
    with pytest.raises(PipelineError) as caught:
        pull(store, accepted, EDGE, tmp_path / "into")
    assert caught.value.exit_code == 22
    assert not (tmp_path / "into/current").exists()
    assert sha256(b"x" * wanted.size) != wanted.sha256
