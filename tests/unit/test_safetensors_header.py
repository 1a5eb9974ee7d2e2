"""The safetensors header is read as the format's own library reads it, and anything irregular is refused."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pipeline.errors import Refusal, TrustError
from pipeline.manifest.safetensors import MAX_HEADER, Header, read_header
from pipeline.manifest.tensor import MAX_TENSORS, Tensor


def encode(header: bytes, data: int) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(data)


def model(document: Any, data: int) -> bytes:
    return encode(json.dumps(document).encode(), data)


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


VALID_HEADER = {
    "__metadata__": {"format": "pt"},
    "b": entry([2, 3], 16, 28, "F16"),
    "a": entry([4], 0, 16),
    "none": entry([0, 7], 16, 16),
    "scalar": entry([], 28, 36, "I64"),
}
VALID = model(VALID_HEADER, 36)


def read(data: bytes) -> Header:
    return read_header(io.BytesIO(data), len(data))


def refused(data: bytes) -> TrustError:
    with pytest.raises(TrustError) as caught:
        read(data)
    assert caught.value.refusal is Refusal.HOSTILE_MODEL
    return caught.value


def test_header_is_read() -> None:
    """Tensors come in the order of their data, placed in the file."""
    header, start = read(VALID), len(VALID) - 36
    assert dict(header.metadata) == {"format": "pt"}
    assert header.tensors == (
        Tensor("a", "F32", (4,), start, 16),
        Tensor("none", "F32", (0, 7), start + 16, 0),
        Tensor("b", "F16", (2, 3), start + 16, 12),
        Tensor("scalar", "I64", (), start + 28, 8),
    )


NAMES = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=15).filter(
    lambda n: n != "__metadata__"
)
KINDS = [np.bool_, np.uint8, np.int8, np.int16, np.float16, np.int32, np.float32, np.int64, np.float64]


@given(
    tensors=st.dictionaries(
        NAMES, st.tuples(st.lists(st.integers(0, 4), max_size=4), st.sampled_from(KINDS)), max_size=6
    ),
    metadata=st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=1, max_size=3),
)
def test_agrees_with_the_formats_own_reader(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, tuple[list[int], Any]],
    metadata: dict[str, str] | None,
) -> None:
    """What the format's own library writes is read as its own reader reads it."""
    arrays = {name: np.zeros(shape, dtype=kind) for name, (shape, kind) in tensors.items()}
    path = tmp_path_factory.mktemp("safetensors") / "model.safetensors"
    path.write_bytes(save(arrays, metadata))
    with path.open("rb") as f:
        header = read_header(f, path.stat().st_size)
    assert dict(header.metadata) == (metadata or {})
    with safe_open(path, "numpy") as theirs:
        assert {t.name for t in header.tensors} == set(theirs.keys())
        for tensor in header.tensors:
            found = theirs.get_slice(tensor.name)
            assert (tensor.type, list(tensor.shape)) == (found.get_dtype(), found.get_shape())
            assert tensor.size == arrays[tensor.name].nbytes


HOSTILE = {
    "empty": b"",
    "shorter than its length": b"\2\0\0",
    "length beyond the end": (100).to_bytes(8, "little") + b"{}",
    "length of all ones": b"\xff" * 8 + b"{}",
    "no header": encode(b"", 0),
    "not JSON": encode(b"{...}", 0),
    "not UTF-8": encode(b'{"\xff": 1}', 0),
    "byte order mark": encode(b"\xef\xbb\xbf{}", 0),
    "space before it": encode(b" {}", 0),
    "a list": encode(b"[]", 0),
    "two documents": encode(b"{}{}", 0),
    "nested": encode(b'{"a":' + b"[" * 100_000, 0),
    "long number": encode(b'{"a": ' + b"1" * 10_000 + b"}", 0),
    "not a number": encode(b'{"a": NaN}', 0),
    "tensor twice": encode(b'{"a": %s, "a": %s}' % ((json.dumps(entry([4], 0, 16)).encode(),) * 2), 16),
    "key of a tensor twice": encode(b'{"a": {"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}', 16),
    "metadata twice": encode(b'{"__metadata__": {"a": "1", "a": "2"}}', 0),
    "metadata not texts": model({"__metadata__": {"a": 1}}, 0),
    "metadata a list": model({"__metadata__": []}, 0),
    "metadata half a character": encode(rb'{"__metadata__": {"a": "\ud800"}}', 0),
    "empty name": model({"": entry([4], 0, 16)}, 16),
    "name with a NUL": model({"a\0": entry([4], 0, 16)}, 16),
    "name half a character": encode(rb'{"\ud800": ' + json.dumps(entry([4], 0, 16)).encode() + b"}", 16),
    "tensor a list": model({"a": [1]}, 16),
    "tensor without shape": model({"a": {"dtype": "F32", "data_offsets": [0, 16]}}, 16),
    "tensor with more": model({"a": {**entry([4], 0, 16), "x": 1}}, 16),
    "unknown type": model({"a": entry([4], 0, 16, "F33")}, 16),
    "type a number": model({"a": entry([4], 0, 16, 7)}, 16),
    "three offsets": model({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16, 16]}}, 16),
    "truth value as extent": model({"a": entry([True, 4], 0, 16)}, 16),
    "fraction as extent": model({"a": entry([4.0], 0, 16)}, 16),
    "fraction as offset": model({"a": entry([4], 0.0, 16.0)}, 16),
    "truth value as offset": model({"a": entry([1], False, True, "U8")}, 1),
    "minus zero": encode(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [-0, 16]}}', 16),
    "negative extents": model({"a": entry([-2, -2], 0, 16)}, 16),
    "negative offset": model({"a": entry([4], -16, 0)}, 0),
    "offsets backwards": model({"a": entry([4], 16, 0)}, 16),
    "extent beyond 64 bits": model({"a": entry([2**64, 0], 0, 0)}, 0),
    "product that wraps to 4": model({"a": entry([2**62 + 1, 4], 0, 16)}, 16),
    "many dimensions": model({"a": entry([1] * 17, 0, 4)}, 4),
    "shape and offsets differ": model({"a": entry([5], 0, 16)}, 16),
    "half a byte": model({"a": entry([3], 0, 1, "F4")}, 1),
    "overlap": model({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}, 16),
    "overlap with room left": model({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}, 32),
    "gap that leads beyond the end": model({"a": entry([4], 0, 16), "b": entry([4], 20, 36)}, 32),
    "too many tensors": model({f"t{i}": entry([0], 0, 0) for i in range(MAX_TENSORS + 1)}, 0),
    "partial overlap": model({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, 24),
    "gap": model({"a": entry([4], 0, 16), "b": entry([4], 20, 36)}, 36),
    "gap at the start": model({"a": entry([4], 4, 20)}, 20),
    "data cut short": model({"a": entry([4], 0, 16)}, 15),
    "data behind the end": model({"a": entry([4], 0, 16)}, 17),
    "header too long": encode(b"{}" + b" " * (MAX_HEADER - 1), 0),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_irregular_file_is_refused(case: str) -> None:
    """A file that departs from the format in one way is refused."""
    refused(HOSTILE[case])


REGULAR = {
    "nothing at all": encode(b"{}", 0),
    "spaces behind the header": encode(b"{}      ", 0),
    "packed floats": model({"a": entry([2], 0, 1, "F4"), "b": entry([4], 1, 4, "F6_E2M3")}, 4),
    "longest header": encode(b"{}" + b" " * (MAX_HEADER - 2), 0),
}


@pytest.mark.parametrize("case", REGULAR)
def test_unusual_file_is_read(case: str) -> None:
    """A file at the edge of what the format allows is read."""
    read(REGULAR[case])


def test_file_shorter_than_said_is_refused() -> None:
    """A stream that ends before the size it was said to have is refused."""
    with pytest.raises(TrustError, match="cut short"):
        read_header(io.BytesIO(VALID[:50]), len(VALID))


def test_every_truncation_is_refused() -> None:
    """A file cut off anywhere is refused."""
    for end in range(len(VALID)):
        refused(VALID[:end])


@given(data=st.data())
def test_any_change_parses_or_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """However a valid file is changed, it is refused, or read as the format's own library reads it."""
    changed = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed) - 37))
        value = data.draw(st.sampled_from([b"\0", b"0", b"9", b"-", b'"', b",", b"[", b"}"]) | st.binary(max_size=3))
        changed[place : place + data.draw(st.integers(0, 1))] = value
    if data.draw(st.booleans()):
        changed[:8] = (len(changed) - 44).to_bytes(8, "little")
    try:
        header = read(bytes(changed))
    except TrustError as e:
        assert e.refusal is Refusal.HOSTILE_MODEL
        return
    path = tmp_path_factory.mktemp("changed") / "model.safetensors"
    path.write_bytes(changed)
    with safe_open(path, "numpy") as theirs:
        assert {t.name for t in header.tensors} == set(theirs.keys())
    assert sum(t.size for t in header.tensors) == 36
    assert all(math.prod(t.shape) >= 0 for t in header.tensors)


@given(
    document=st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=3
            )
        ),
    )
)
def test_what_the_formats_own_reader_refuses_is_refused(
    tmp_path_factory: pytest.TempPathFactory, document: Any
) -> None:
    """A header that is refused by the format's own library is refused here too."""
    data = model(document, 4)
    path: Path = tmp_path_factory.mktemp("any") / "model.safetensors"
    path.write_bytes(data)
    try:
        with safe_open(path, "numpy"):
            return
    except SafetensorError:
        refused(data)
