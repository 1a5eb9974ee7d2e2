"""A registry in a folder: the rules of every store, and no way out of the folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pipeline.errors import ConflictError, Refusal, RegistryError, TrustError
from pipeline.manifest.encoding import sha256
from pipeline.registry import layout
from pipeline.registry.folder import FolderStore
from pipeline.registry.store import Store, open_store, silent
from tests.support.contract import DATA, DIGEST, StoreContract
from tests.support.releases import open_files

NAME = "releases/demo/0000000001.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def store(root: Path) -> FolderStore:
    return FolderStore(root)


class TestFolderStore(StoreContract):
    """A folder keeps the rules of every store."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def _stored(store: Store, source: Path) -> None:
    store.put_blob(DIGEST, source, silent)
    store.create(NAME, b"{}")


LINKS = {
    "blob": f"blobs/sha256/{DIGEST}",
    "folder of blobs": "blobs/sha256",
    "blobs": "blobs",
    "release": NAME,
    "line": "releases/demo",
    "releases": "releases",
}


@pytest.mark.parametrize("name", LINKS.values(), ids=LINKS)
def test_links_are_not_followed(name: str, store: FolderStore, root: Path, source: Path, tmp_path: Path) -> None:
    """A link anywhere below the root refuses reading, listing and writing, though its target is right."""
    _stored(store, source)
    (root / name).rename(tmp_path / "elsewhere")
    (root / name).symlink_to(tmp_path / "elsewhere")
    calls = (
        [lambda: store.blob_size(DIGEST), lambda: store.put_blob(DIGEST, source, silent)]
        if "blobs" in name
        else [lambda: store.read(NAME, 100)]
    )
    if name in {"releases/demo", "releases"}:
        calls += [lambda: store.names("releases/demo/"), lambda: store.create(NAME.replace("1", "2"), b"{}")]
    for call in calls:
        with pytest.raises(TrustError) as caught:
            call()
        assert caught.value.refusal is Refusal.SYMLINK


def test_the_root_may_be_a_link(store: FolderStore, root: Path, source: Path, tmp_path: Path) -> None:
    """Where the registry itself lies is its user's choice."""
    _stored(store, source)
    (tmp_path / "alias").symlink_to(root)
    assert FolderStore(tmp_path / "alias").read(NAME, 100) == b"{}"


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_only_regular_files_are_read(kind: str, store: FolderStore, root: Path, source: Path) -> None:
    """A pipe or a folder in a file's place is refused at once, and no file stays open."""
    _stored(store, source)
    path = root / NAME
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    before = open_files()
    with pytest.raises(TrustError) as caught:
        store.read(NAME, 100)
    assert caught.value.refusal is Refusal.TAMPERED
    assert open_files() == before


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "releases/../../outside", "a//b", "a/\0"])
def test_names_do_not_lead_out(name: str, store: FolderStore, source: Path) -> None:
    """A name that is not plain is refused for reading and for creating."""
    _stored(store, source)
    for call in (lambda: store.read(name, 100), lambda: store.create(name, b"")):
        with pytest.raises(TrustError) as caught:
            call()
        assert caught.value.refusal is Refusal.UNSAFE_NAME


def test_links_and_hidden_names_are_not_listed(store: FolderStore, root: Path, source: Path) -> None:
    """A listing shows regular files alone; what a killed writer left is not among them."""
    _stored(store, source)
    (root / "releases/demo/0000000002.json").symlink_to("0000000001.json")
    (root / "releases/demo/.new-1234").write_bytes(b"{")
    assert store.names("releases/demo/") == [NAME]


def test_one_of_many_racing_writers_wins(root: Path) -> None:
    """Of eight writers that create one object at once exactly one succeeds, and its bytes are there."""
    barrier, won, lost = threading.Barrier(8), [], []

    def write(number: int) -> None:
        barrier.wait()
        try:
            FolderStore(root).create(NAME, b"%d" % number)
            won.append(number)
        except ConflictError:
            lost.append(number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(won) == 1
    assert len(lost) == 7
    assert FolderStore(root).read(NAME, 10) == b"%d" % won[0]


def test_what_a_killed_writer_left_is_removed(store: FolderStore, root: Path, source: Path) -> None:
    """The next writer into the same folder tidies up."""
    _stored(store, source)
    left = root / "releases/demo/.new-0123"
    left.write_bytes(b"half")
    store.create("releases/demo/0000000002.json", b"{}")
    assert not left.exists()
    assert not list(root.rglob(".new-*"))


def test_a_blob_of_the_wrong_size_is_replaced(store: FolderStore, root: Path, source: Path) -> None:
    """A truncated blob is mended by storing it again."""
    _stored(store, source)
    blob = root / "blobs/sha256" / DIGEST
    blob.chmod(0o644)
    blob.write_bytes(DATA[:-1])
    assert store.put_blob(DIGEST, source, silent)
    assert blob.read_bytes() == DATA


def test_an_error_of_the_disk_is_explained(tmp_path: Path) -> None:
    """A registry that cannot be written ends in one error with a hint."""
    (tmp_path / "file").touch()
    with pytest.raises(RegistryError) as caught:
        FolderStore(tmp_path / "file").create(NAME, b"")
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint


def test_the_callers_own_errors_pass(store: FolderStore, source: Path) -> None:
    """What goes wrong while a blob is being used is not blamed on the registry."""
    _stored(store, source)
    with pytest.raises(FileNotFoundError), store.open_blob(DIGEST):
        raise FileNotFoundError


@pytest.mark.parametrize("spelling", ["{0}", "file://{0}", "file://localhost{0}"])
def test_a_folders_addresses(spelling: str, root: Path) -> None:
    """A path and its file URL are the same registry."""
    FolderStore(root).create(NAME, b"1")
    assert open_store(spelling.format(root)).read(NAME, 10) == b"1"


@pytest.mark.parametrize("url", ["http://h/x", "file://host/x", "s3://", "s3:///x", "s3://key:secret@bucket/x"])
def test_unknown_addresses_are_explained(url: str) -> None:
    """What is no registry's address is refused without repeating a secret that stands in it."""
    with pytest.raises(RegistryError) as caught:
        open_store(url)
    assert "secret" not in caught.value.message
    assert "s3://bucket/prefix" in caught.value.hint


@pytest.mark.parametrize("word", ["", "..", "a/b", "A", "a b", "x" * 64, "é"])
def test_lines_and_channels_are_plain_words(word: str) -> None:
    """A line or channel that is not a plain word names nothing."""
    for name in (lambda: layout.releases(word), lambda: layout.row("demo", word)):
        with pytest.raises(TrustError) as caught:
            name()
        assert caught.value.refusal is Refusal.UNSAFE_NAME


def test_digests_and_numbers_have_one_spelling() -> None:
    """A digest is 64 small hex digits, a version has at most ten; other names are not releases."""
    assert layout.blob(sha256(b"")).startswith("blobs/sha256/e3b0")
    for digest in ("", "A" * 64, "0" * 63, "../" + "0" * 61):
        with pytest.raises(TrustError):
            layout.blob(digest)
    for version in (0, -1, 10**10):
        with pytest.raises(TrustError):
            layout.release("demo", version)
    names = ["p/0000000002.json", "p/1.json", "p/x/0000000003.json", "p/0000000001.json.bak", "p/٠٠٠٠٠٠٠٠٠٤.json"]
    assert layout.numbers(names, "p/") == [2]
