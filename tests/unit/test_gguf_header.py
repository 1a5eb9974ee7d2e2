"""The GGUF header is read as the format's own library reads it, and anything irregular is refused."""

import io
import math
import struct
from typing import Any, BinaryIO

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Refusal, TrustError
from pipeline.manifest.gguf import (
    MAX_ENTRIES,
    MAX_HEADER,
    MAX_STRING,
    TENSOR_TYPES,
    Array,
    Header,
    read_header,
)
from pipeline.manifest.tensor import MAX_TENSORS, Tensor

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


def number(value: int, width: int = 8) -> bytes:
    return value.to_bytes(width, "little")


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return number(len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + number(kind, 4) + value


def info(name: str | bytes = "w", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    dimensions = b"".join(number(n) for n in shape)
    return text(name) + number(len(shape), 4) + dimensions + number(kind, 4) + number(offset)


def model(
    entries: list[bytes], tensors: list[bytes], data: int = 32, *, version: int = 3, alignment: int = 32
) -> bytes:
    counts = number(len(tensors)) + number(len(entries))
    header = b"GGUF" + number(version, 4) + counts + b"".join(entries) + b"".join(tensors)
    return header + bytes(-len(header) % alignment if tensors else 0) + bytes(data)


VALID = model(
    [
        pair("general.architecture", STRING, text("llama")),
        pair("llama.block_count", U32, number(2, 4)),
        pair("llama.rope.freq_base", F32, struct.pack("<f", 0.5)),
        pair("tokenizer.ggml.add_bos_token", BOOL, b"\1"),
        pair("tokenizer.ggml.tokens", ARRAY, number(STRING, 4) + number(2) + text("a") + text(b"\xff")),
        pair("tokenizer.ggml.token_type", ARRAY, number(U32, 4) + number(2) + bytes(8)),
    ],
    [info("a", (3, 2), 0, 0), info("b", (256,), 12, 32)],
    32 + 160,
)


def read(data: bytes) -> Header:
    return read_header(io.BytesIO(data), len(data))


def refused(data: bytes) -> TrustError:
    with pytest.raises(TrustError) as caught:
        read(data)
    assert caught.value.refusal is Refusal.HOSTILE_MODEL
    return caught.value


def test_header_is_read() -> None:
    """Scalars keep their types, arrays are counted, and tensors are placed in the file."""
    header = read(VALID)
    assert dict(header.metadata) == {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.rope.freq_base": 0.5,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.tokens": Array(2),
        "tokenizer.ggml.token_type": Array(2),
    }
    start = len(VALID) - 192
    assert header.tensors == (
        Tensor("a", "F32", (3, 2), start, 24),
        Tensor("b", "Q4_K", (256,), start + 32, 144),
    )
    assert header.alignment == 32


def test_types_are_those_of_the_format() -> None:
    """Every type a file may hold has the block sizes of the format's own library."""
    only_in_memory = {gguf.GGMLQuantizationType.Q8_1, gguf.GGMLQuantizationType.Q8_K}
    theirs = {int(t): (t.name, *sizes) for t, sizes in gguf.GGML_QUANT_SIZES.items() if t not in only_in_memory}
    assert theirs.items() <= TENSOR_TYPES.items()


SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
SCALARS = {
    "add_uint8": st.integers(0, 2**8 - 1),
    "add_int8": st.integers(-(2**7), 2**7 - 1),
    "add_uint16": st.integers(0, 2**16 - 1),
    "add_int16": st.integers(-(2**15), 2**15 - 1),
    "add_uint32": st.integers(0, 2**32 - 1),
    "add_int32": st.integers(-(2**31), 2**31 - 1),
    "add_uint64": st.integers(0, 2**64 - 1),
    "add_int64": st.integers(-(2**63), 2**63 - 1),
    "add_float32": st.floats(width=32, allow_nan=False),
    "add_float64": st.floats(allow_nan=False),
    "add_bool": st.booleans(),
    "add_string": st.text(min_size=1, max_size=20),
    "add_array": st.lists(st.integers(0, 9), min_size=1, max_size=5)
    | st.lists(st.text(max_size=5), min_size=1, max_size=5),
}
METADATA = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_]{0,8}(\.[a-z]{1,5}){0,2}", fullmatch=True),
    st.sampled_from(sorted(SCALARS)).flatmap(lambda adder: st.tuples(st.just(adder), SCALARS[adder])),
    max_size=6,
)
TENSORS = st.dictionaries(
    st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=15),
    st.tuples(SHAPES, st.sampled_from([np.float32, np.float16, np.float64, np.int8, np.int32])),
    max_size=5,
)


@given(metadata=METADATA, tensors=TENSORS, alignment=st.sampled_from([8, 32, 64, 4096]))
def test_agrees_with_the_formats_own_reader(
    tmp_path_factory: pytest.TempPathFactory,
    metadata: dict[str, tuple[str, Any]],
    tensors: dict[str, tuple[tuple[int, ...], Any]],
    alignment: int,
) -> None:
    """What the format's own library writes is read as its own reader reads it."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    for key, (adder, value) in metadata.items():
        getattr(writer, adder)(key, value)
    for name, (shape, kind) in tensors.items():
        writer.add_tensor(name, np.zeros(shape, dtype=kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with path.open("rb") as f:
        header = read_header(f, path.stat().st_size)
    assert_same(header, gguf.GGUFReader(path))


def assert_same(ours: Header, theirs: gguf.GGUFReader) -> None:
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for name, field in fields.items():
        value = ours.metadata[name]
        expected = field.contents()
        assert value == (Array(len(expected)) if isinstance(value, Array) else expected)
    assert [(t.name, t.type, t.shape, t.offset, t.size) for t in ours.tensors] == [
        (t.name, t.tensor_type.name, tuple(t.shape.tolist()), t.data_offset, t.n_bytes) for t in theirs.tensors
    ]
    assert ours.alignment == theirs.alignment


@pytest.mark.parametrize("kind", sorted(TENSOR_TYPES), ids=[name for name, _, _ in TENSOR_TYPES.values()])
def test_every_type_has_its_size(kind: int) -> None:
    """A tensor of two blocks of any type takes two blocks' bytes, and no shape that splits a block is taken."""
    _, block, size = TENSOR_TYPES[kind]
    (tensor,) = read(model([], [info(shape=(block, 2), kind=kind)], 2 * size)).tensors
    assert tensor.size == 2 * size
    if block > 1:
        refused(model([], [info(shape=(block // 2, 4), kind=kind)], 2 * size))


def test_large_vocabulary_is_counted() -> None:
    """A large vocabulary is walked through piece by piece, and what follows it is found."""
    tokens = b"".join(text(f"token {i}") for i in range(200_000))
    data = model([pair("tokenizer.ggml.tokens", ARRAY, number(STRING, 4) + number(200_000) + tokens)], [info()], 16)
    assert read(data).metadata["tokenizer.ggml.tokens"] == Array(200_000)
    assert read(data).tensors[0].offset == len(data) - 16


@pytest.mark.parametrize("beyond", range(-10, 11))
def test_texts_may_end_anywhere(beyond: int) -> None:
    """What follows an array is found wherever the array's texts end in the pieces that are read."""
    before = len(model([pair("texts", ARRAY, number(STRING, 4) + number(2))], [], 0))
    texts = text(bytes((1 << 20) - before - 8 - 8 - 3 + beyond)) + text("abc")
    entries = [pair("texts", ARRAY, number(STRING, 4) + number(2) + texts), pair("after", STRING, text("found"))]
    assert read(model(entries, [], 0)).metadata == {"texts": Array(2), "after": "found"}


def test_product_beyond_64_bits_is_refused() -> None:
    """A shape whose product does not fit 64 bits is refused, even if a file could be as large."""
    data = model([], [info(shape=(2**62, 4), kind=24)], 0)
    with pytest.raises(TrustError, match="cannot have shape"):
        read_header(io.BytesIO(data), len(data) + 2**64)


class Counting(io.BytesIO):
    """Counts the bytes that are read."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def test_tensor_data_are_not_read() -> None:
    """Reading the header of a large file reads little more than the header."""
    stream = Counting(model([], [info(shape=(4 << 20,))], 16 << 20))
    read_header(stream, len(stream.getvalue()))
    assert stream.count <= 2 << 20


ENTRY = pair("k", U8, b"\0")
HOSTILE = {
    "empty": b"",
    "other magic": b"GGML" + VALID[4:],
    "version 2": model([], [], 0, version=2),
    "other byte order": model([], [], 0, version=3 << 24),
    "too many tensors": model(
        [], [info(f"t{i}", offset=32 * i) for i in range(MAX_TENSORS + 1)], 32 * (MAX_TENSORS + 1)
    ),
    "too many entries": model([pair(f"k{i}", U8, b"\0") for i in range(MAX_ENTRIES + 1)], [], 0),
    "counts of all ones": b"GGUF" + number(3, 4) + b"\xff" * 16,
    "key twice": model([ENTRY, ENTRY], [], 0),
    "empty key": model([pair("", U8, b"\0")], [], 0),
    "key not ASCII": model([pair("schlüssel", U8, b"\0")], [], 0),
    "key with a NUL": model([pair("a\0b", U8, b"\0")], [], 0),
    "key longer than allowed": model([pair("k" * 65_536, U8, b"\0")], [], 0),
    "unknown metadata type": model([pair("k", 13, b"\0")], [], 0),
    "truth value of two": model([pair("k", BOOL, b"\2")], [], 0),
    "text not UTF-8": model([pair("k", STRING, text(b"\xff"))], [], 0),
    "text beyond the end": model([pair("k", STRING, number(100) + b"x")], [], 0),
    "text longer than allowed": model([pair("k", STRING, number(MAX_STRING + 1))], [], 0),
    "text of all ones": model([pair("k", STRING, b"\xff" * 8)], [], 0),
    "array in an array": model([pair("k", ARRAY, number(ARRAY, 4) + number(1) + number(U8, 4) + number(0))], [], 0),
    "array of unknown type": model([pair("k", ARRAY, number(99, 4) + number(0))], [], 0),
    "array beyond the end": model([pair("k", ARRAY, number(U64, 4) + number(2) + bytes(8))], [], 0),
    "array of all ones": model([pair("k", ARRAY, number(U64, 4) + b"\xff" * 8)], [], 0),
    "texts beyond the end": model([pair("k", ARRAY, number(STRING, 4) + number(2) + text("a"))], [], 0),
    "texts of all ones": model([pair("k", ARRAY, number(STRING, 4) + b"\xff" * 8)], [], 0),
    "text in an array of all ones": model([pair("k", ARRAY, number(STRING, 4) + number(1) + b"\xff" * 8)], [], 0),
    "alignment of zero": model([pair("general.alignment", U32, number(0, 4))], [info()]),
    "alignment of 24": model([pair("general.alignment", U32, number(24, 4))], [info()], 16, alignment=24),
    "alignment of another type": model([pair("general.alignment", U64, number(32))], [info()]),
    "alignment as text": model([pair("general.alignment", STRING, text("32"))], [info()]),
    "five dimensions": model([], [info(shape=(1, 1, 1, 1, 1))]),
    "no elements": model([], [info(shape=(4, 0))], 0),
    "negative extent": model([], [info(shape=(2**64 - 4,))]),
    "product beyond 64 bits": model([], [info(shape=(2**32, 2**31, 2, 2))]),
    "product that wraps to 4": model([], [info(shape=(2**62 + 1, 4))]),
    "unknown tensor type": model([], [info(kind=43)]),
    "removed tensor type": model([], [info(kind=4)]),
    "tensor type only in memory": model([], [info(shape=(256,), kind=15)], 320),
    "tensor twice": model([], [info(), info(offset=32)], 64),
    "empty tensor name": model([], [info("")]),
    "tensor name with a NUL": model([], [info("a\0b")]),
    "tensor name not UTF-8": model([], [info(b"\xff")]),
    "tensor name too long": model([], [info("n" * 64)]),
    "overlap": model([], [info("a"), info("b")], 64),
    "gap": model([], [info("a"), info("b", offset=64)], 128),
    "offset not aligned": model([], [info("a"), info("b", offset=16)], 64),
    "first offset": model([], [info(offset=32)], 64),
    "offset of all ones": model([], [info(offset=2**64 - 1)]),
    "data cut short": model([], [info()], 15),
    "data behind the end": model([], [info()], 33),
    "data without tensors": model([], [], 9),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_irregular_file_is_refused(case: str) -> None:
    """A file that departs from the format in one way is refused."""
    refused(HOSTILE[case])


REGULAR = {
    "nothing at all": model([], [], 0),
    "last tensor without padding": model([], [info()], 16),
    "scalar": model([], [info(shape=())], 4),
    "longest tensor name": model([], [info("n" * 63)]),
    "empty array": model([pair("k", ARRAY, number(U8, 4) + number(0))], [], 0),
    "large alignment": model([pair("general.alignment", U32, number(4096, 4))], [info()], alignment=4096),
}


@pytest.mark.parametrize("case", REGULAR)
def test_unusual_file_is_read(case: str) -> None:
    """A file at the edge of what the format allows is read."""
    read(REGULAR[case])


def test_long_header_is_refused() -> None:
    """A header that does not end within its bound is refused, however large the file is."""
    size = MAX_HEADER + (1 << 20)
    length = MAX_HEADER
    start = b"GGUF" + number(3, 4) + number(0) + number(1)
    start += pair("k", ARRAY, number(U8, 4) + number(length))

    class Endless(io.RawIOBase, BinaryIO):
        def __init__(self) -> None:
            self.served = 0

        def read(self, count: int = -1) -> bytes:
            self.served += count
            return (start + bytes(count))[:count] if self.served == count else bytes(count)

    stream = Endless()
    with pytest.raises(TrustError) as caught:
        read_header(stream, size)
    assert caught.value.refusal is Refusal.HOSTILE_MODEL
    assert stream.served <= MAX_HEADER


def test_file_shorter_than_said_is_refused() -> None:
    """A stream that ends before the size it was said to have is refused."""
    with pytest.raises(TrustError, match="cut short"):
        read_header(io.BytesIO(VALID[:50]), len(VALID))


def test_every_truncation_is_refused() -> None:
    """A file cut off anywhere before the end of its last tensor is refused."""
    for end in range(len(VALID) - 16):
        refused(VALID[:end])


@given(data=st.data())
def test_any_change_parses_or_is_refused(data: st.DataObject) -> None:
    """However a valid file is changed, it is refused or read within its bounds, and nothing else happens."""
    changed = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(changed) - 1))
        value = data.draw(st.sampled_from([b"\0", b"\1", b"\x7f", b"\xff", b"\xff" * 8]) | st.binary(max_size=9))
        if data.draw(st.booleans()):
            changed[place : place + len(value)] = value
        else:
            changed[place:place] = value
    try:
        header = read(bytes(changed))
    except TrustError as e:
        assert e.refusal is Refusal.HOSTILE_MODEL
        return
    assert all(0 < t.offset <= t.offset + t.size <= len(changed) for t in header.tensors)
    assert len({t.name for t in header.tensors}) == len(header.tensors)
    assert all(math.prod(t.shape) > 0 for t in header.tensors)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    """Arbitrary bytes behind the magic are refused unless they are an empty model."""
    try:
        read(b"GGUF" + number(3, 4) + data)
    except TrustError as e:
        assert e.refusal is Refusal.HOSTILE_MODEL
