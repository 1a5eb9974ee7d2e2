"""Files on disk: digests, and names that are taken whole or not at all."""

from __future__ import annotations

import ctypes
import hashlib
import io
import mmap
from pathlib import Path

import pytest

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
