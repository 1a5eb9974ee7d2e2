"""What every kind of registry must do; a test class of each kind inherits these tests and gives the fixture `store`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConflictError, Refusal, TrustError
from pipeline.manifest.encoding import sha256
from pipeline.registry.store import Store, silent
from tests.support.releases import flipped

DATA = bytes(range(256)) * 40
DIGEST = sha256(DATA)


def overtaken(client: Any, bucket: str, key: str, when: str = "before") -> None:
    """Let another writer put a key right before this client's next PUT leaves, or right after it was answered."""
    pending = [b"another's"]

    def write(**_: object) -> None:
        if pending:
            client.put_object(Bucket=bucket, Key=key, Body=pending.pop())

    client.meta.events.register(f"{when}-call.s3.PutObject", write)


class StoreContract:
    """Rules of `pipeline.registry.store.Store`."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        path = tmp_path / "source"
        path.write_bytes(DATA)
        return path

    def test_a_blob_is_stored_once(self, store: Store, source: Path) -> None:
        """The second time it is there already; what was stored is what comes out."""
        assert store.blob_size(DIGEST) is None
        assert store.put_blob(DIGEST, source, silent)
        assert not store.put_blob(DIGEST, source, silent)
        assert store.blob_size(DIGEST) == len(DATA)
        with store.open_blob(DIGEST) as f:
            assert io.BufferedReader(f).read() == DATA

    @pytest.mark.parametrize("offset", [0, 1, 5000, len(DATA) - 1, len(DATA)])
    def test_a_blob_is_read_from_an_offset(self, offset: int, store: Store, source: Path) -> None:
        """A range starts where it was asked for, the end included."""
        store.put_blob(DIGEST, source, silent)
        with store.open_blob(DIGEST, offset) as f:
            assert io.BufferedReader(f).read() == DATA[offset:]

    @pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, len(DATA)), (5000, 300), (len(DATA) - 1, 1), (7, 0)])
    def test_a_range_of_a_blob_is_read(self, offset: int, length: int, store: Store, source: Path) -> None:
        """A range ends where it was asked to."""
        store.put_blob(DIGEST, source, silent)
        with store.open_blob(DIGEST, offset, length) as f:
            assert io.BufferedReader(f).read() == DATA[offset : offset + length]

    def test_an_empty_blob(self, store: Store, tmp_path: Path) -> None:
        """A file without bytes is a file."""
        (tmp_path / "empty").touch()
        digest = sha256(b"")
        assert store.put_blob(digest, tmp_path / "empty", silent)
        assert store.blob_size(digest) == 0
        with store.open_blob(digest) as f:
            assert io.BufferedReader(f).read() == b""

    def test_a_blob_under_a_wrong_digest_is_refused(self, store: Store, source: Path) -> None:
        """Content that is not what its name says does not get into the registry."""
        source.write_bytes(flipped(DATA))
        with pytest.raises(TrustError) as caught:
            store.put_blob(DIGEST, source, silent)
        assert caught.value.refusal is Refusal.TAMPERED
        assert store.blob_size(DIGEST) is None

    def test_progress_reaches_the_size(self, store: Store, source: Path) -> None:
        """Progress names the blob and ends at its size."""
        seen: list[tuple[int, int, str]] = []
        store.put_blob(DIGEST, source, lambda *report: seen.append(report))
        assert seen[-1] == (len(DATA), len(DATA), DIGEST)

    @pytest.mark.parametrize("length", [None, 10])
    def test_a_missing_blob_is_refused(self, length: int | None, store: Store) -> None:
        """A blob that is not there is a missing file, whether all of it is asked for or a range."""
        with pytest.raises(TrustError) as caught, store.open_blob(DIGEST, 0, length) as f:
            f.read(1)
        assert caught.value.refusal is Refusal.MISSING_FILE

    @pytest.mark.parametrize("data", [b"one", b"other"], ids=["same content", "other content"])
    def test_an_object_is_created_once(self, data: bytes, store: Store) -> None:
        """The first content stays, whatever is created after it."""
        store.create("releases/demo/0000000001.json", b"one")
        with pytest.raises(ConflictError):
            store.create("releases/demo/0000000001.json", data)
        assert store.read("releases/demo/0000000001.json", 100) == b"one"

    def test_reading_is_bounded(self, store: Store) -> None:
        """An object of the limit's size is read, one byte more is refused, none is None."""
        store.create("releases/demo/0000000001.json", b"x" * 100)
        assert store.read("releases/demo/0000000001.json", 100) == b"x" * 100
        assert store.read("releases/demo/0000000002.json", 100) is None
        with pytest.raises(TrustError) as caught:
            store.read("releases/demo/0000000001.json", 99)
        assert caught.value.refusal is Refusal.OVERSIZED

    def test_names_are_listed_in_order(self, store: Store) -> None:
        """Names come sorted, below the prefix only, and after the one given."""
        assert store.names("channels/demo/") == []
        for name in ("stable/0000000002", "dev/0000000010", "dev/0000000009", "dev/0000000001"):
            store.create(f"channels/demo/{name}.json", b"1")
        store.create("channels/demo2/dev/0000000001.json", b"1")
        dev = [f"channels/demo/dev/{n:010d}.json" for n in (1, 9, 10)]
        assert store.names("channels/demo/dev/") == dev
        assert store.names("channels/demo/dev/", dev[0]) == dev[1:]
        assert store.names("channels/demo/dev/", dev[2]) == []
        assert store.names("channels/demo/") == [*dev, "channels/demo/stable/0000000002.json"]
