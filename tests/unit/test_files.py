"""Files on disk: digests, and names that are taken whole or not at all."""

from __future__ import annotations

import ctypes
import hashlib
import io
import mmap
from pathlib import Path

import pytest

from pipeline.errors import StageError
from pipeline.ports import files

SIZES = [0, 1, files.PIECE - 1, files.PIECE, files.PIECE + 1, 3 * files.PIECE + 7]


@pytest.mark.parametrize("size", SIZES)
def test_a_files_digest_is_that_of_its_bytes(size: int, tmp_path: Path) -> None:
    """Whatever piece a file ends in, its digest is that of all its bytes."""
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(data[:size])
    assert files.sha256_file(tmp_path / "file") == hashlib.sha256(data[:size]).hexdigest()


@pytest.mark.parametrize("limit", [0, 1, files.PIECE, files.PIECE + 1, 1 << 30])
def test_no_more_is_read_than_the_limit(limit: int) -> None:
    """At most `limit` bytes come out, and as many stay unread."""
    stream = io.BytesIO(b"x" * (2 * files.PIECE))
    read = sum(len(piece) for piece in files.pieces(stream, limit))
    assert read == stream.tell() == min(limit, 2 * files.PIECE)


def test_pieces_begin_on_a_page() -> None:
    """The kernel copies into whole pages, which some processors do several times faster."""
    for piece in files.pieces(io.BytesIO(b"x" * (files.PIECE + 1))):
        assert ctypes.addressof(ctypes.c_char.from_buffer(piece)) % mmap.PAGESIZE == 0


def test_a_name_is_never_taken_from_another(tmp_path: Path) -> None:
    """Creating a file that exists leaves it as it is, and nothing beside it."""
    assert files.create(tmp_path / "file", b"first")
    assert not files.create(tmp_path / "file", b"second")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"first"]


def test_a_moved_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    """Moving replaces what had the name before, and leaves none behind."""
    (tmp_path / "made").write_bytes(b"new")
    (tmp_path / "file").write_bytes(b"old")
    files.move(tmp_path / "made", tmp_path / "file")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"new"]


def test_a_file_is_put_elsewhere_by_a_link(tmp_path: Path) -> None:
    """The other name is the file itself, also where the first is a symbolic link; folders are made."""
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "alias").symlink_to("file")
    files.put(tmp_path / "alias", tmp_path / "a/b/other")
    assert (tmp_path / "a/b/other").samefile(tmp_path / "file")
    assert not (tmp_path / "a/b/other").is_symlink()


@pytest.mark.parametrize("link", [True, False], ids=["across file systems", "on purpose"])
def test_a_file_is_put_elsewhere_by_a_copy(tmp_path: Path, link: bool) -> None:
    """Where no link is possible, or none is wanted, the other file has the same bytes and a life of its own."""
    source = Path("/proc/self/cmdline") if link else tmp_path / "file"
    (tmp_path / "file").write_bytes(b"data")
    files.put(source, tmp_path / "other", link=link)
    assert (tmp_path / "other").read_bytes() == source.read_bytes()
    assert (tmp_path / "other").stat().st_nlink == 1


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    """A file that may have other names is left as it is, with an error."""
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "other").write_bytes(b"kept")
    with pytest.raises(StageError, match="File exists"):
        files.put(tmp_path / "file", tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == b"kept"


def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    """A full disk or a file in the folder's place ends in an error with a hint."""
    (tmp_path / "file").write_bytes(b"data")
    for place in (Path("/dev/full"), tmp_path / "file/below"):
        with pytest.raises(StageError) as caught:
            files.put(tmp_path / "file", place, link=False)
        assert "free space" in caught.value.hint
