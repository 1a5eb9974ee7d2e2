"""The header of a GGUF file, read within bounds before anything else opens the file.

Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; where llama.cpp's own reader (ggml/src/gguf.cpp)
is stricter, its rule holds: arrays are not nested, tensors lie one after another in the order they are listed.

Rules: every count and length is checked before it is used; what the format leaves open is refused (other versions and
byte orders, names that are not printable, empty tensors, bytes behind the last tensor). The work is linear in the
header's bytes. Arrays, among them the vocabulary, are walked through and counted, not kept, and only their strings'
lengths are looked at.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import BinaryIO, NoReturn

from pipeline.errors import Refusal, TrustError
from pipeline.manifest.tensor import MAX_EXTENT, MAX_TENSORS, Tensor

VERSION = 3
DEFAULT_ALIGNMENT = 32
MAX_HEADER = 64 << 20  # bytes; vocabularies of 300,000 tokens with their merges take about 16 MiB
MAX_STRING = 16 << 20  # bytes; a whole tokenizer.json stands in some files
MAX_KEY = 65_535  # bytes
MAX_TENSOR_NAME = 63  # bytes
MAX_ENTRIES = 16_384
MAX_DIMENSIONS = 4
_CHUNK = 1 << 20

# By number: the type's name, the elements in one block, the bytes of one block. Q8_1 and Q8_K exist only in memory.
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

# By number: how a metadata scalar of that type is laid out.
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<B"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_LENGTH = struct.Struct("<Q")
_UINT32, _BOOL, _STRING, _ARRAY, _INT64 = 4, 7, 8, 9, 11


@dataclass(frozen=True)
class Array:
    """An array's number of elements; the elements are not kept."""

    length: int


Value = int | float | bool | str | Array


@dataclass(frozen=True)
class Header:
    """What the file says of itself; tensors' shapes have the fastest dimension first, `alignment` is in bytes.

    `seams` are the offsets (bytes) at which a metadata entry or the list of tensors begins.
    """

    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    alignment: int
    seams: tuple[int, ...]


def read_header(stream: BinaryIO, size: int) -> Header:
    """Return the header of a GGUF file.

    Args:
        stream: the file, at its start; it is read to the header's end.
        size: bytes the file has.

    Raises:
        TrustError: HOSTILE_MODEL, when the file is not exactly what the format demands.
    """
    cursor = _Cursor(stream, min(size, MAX_HEADER))
    if cursor.take(4) != b"GGUF":
        _refuse("it does not begin with 'GGUF'")
    if (version := cursor.number(4)) != VERSION:
        _refuse(f"version {version} (or byte order) is not {VERSION}")
    tensors, entries = cursor.number(8), cursor.number(8)
    if tensors > MAX_TENSORS or entries > MAX_ENTRIES:
        _refuse(f"{tensors} tensors and {entries} metadata entries are too many")
    metadata, alignment, seams = _metadata(cursor, entries)
    listed = [_listed(cursor) for _ in range(tensors)]
    placed = _placed(listed, cursor.position, alignment, size)
    return Header(MappingProxyType(metadata), placed, alignment, seams)


def entry_size(key: str, value: str | int) -> int:
    """Return the bytes that a metadata entry takes at most."""
    held = _LENGTH.size + len(value.encode()) if isinstance(value, str) else _SCALARS[_INT64].size
    return _LENGTH.size + len(key.encode()) + _SCALARS[_UINT32].size + held


def _metadata(cursor: _Cursor, entries: int) -> tuple[dict[str, Value], int, tuple[int, ...]]:
    metadata: dict[str, Value] = {}
    alignment, seams = DEFAULT_ALIGNMENT, [cursor.position]
    for _ in range(entries):
        key, kind = cursor.name(MAX_KEY), cursor.number(4)
        if key in metadata or not key.isascii():
            _refuse(f"metadata key {key[:60]!r} stands twice or is not ASCII")
        value = metadata[key] = _value(cursor, kind)
        if key == "general.alignment":
            if kind != _UINT32 or not isinstance(value, int) or value.bit_count() != 1:
                _refuse("the alignment is not a power of two")
            alignment = value
        seams.append(cursor.position)
    return metadata, alignment, tuple(seams)


def _value(cursor: _Cursor, kind: int) -> Value:
    if kind == _STRING:
        return cursor.text(MAX_STRING)
    if kind == _ARRAY:
        return _array(cursor)
    layout = _layout(kind)
    value: int | float = layout.unpack(cursor.take(layout.size))[0]
    if kind != _BOOL:
        return value
    if value > 1:
        _refuse(f"a truth value is {value}")
    return bool(value)


def _array(cursor: _Cursor) -> Array:
    kind, length = cursor.number(4), cursor.number(8)
    if kind == _STRING:
        cursor.skip_texts(length)
    else:
        cursor.skip(length * _layout(kind).size)
    return Array(length)


def _layout(kind: int) -> struct.Struct:
    if kind not in _SCALARS:
        _refuse(f"there is no metadata of type {kind} here")
    return _SCALARS[kind]


def _listed(cursor: _Cursor) -> Tensor:
    name, dimensions = cursor.name(MAX_TENSOR_NAME), cursor.number(4)
    if dimensions > MAX_DIMENSIONS:
        _refuse(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(cursor.number(8) for _ in range(dimensions))
    kind, offset = cursor.number(4), cursor.number(8)
    if kind not in TENSOR_TYPES:
        _refuse(f"tensor {name!r} is of unknown type {kind}")
    type_, block, block_bytes = TENSOR_TYPES[kind]
    elements = math.prod(shape)
    if not 0 < elements <= MAX_EXTENT or (shape[0] if shape else 1) % block:
        _refuse(f"tensor {name!r} cannot have shape {shape} as {type_}")
    return Tensor(name, type_, shape, offset, elements // block * block_bytes)


def _placed(listed: list[Tensor], header_bytes: int, alignment: int, size: int) -> tuple[Tensor, ...]:
    start = end = padded = _pad(header_bytes, alignment) if listed else header_bytes
    placed: dict[str, Tensor] = {}
    for tensor in listed:
        if tensor.name in placed or start + tensor.offset != padded:
            _refuse(f"tensor {tensor.name!r} stands twice, or does not follow the one before it")
        placed[tensor.name] = replace(tensor, offset=padded)
        end = padded + tensor.size
        padded = _pad(end, alignment)
    if not end <= size <= _pad(end, alignment):
        _refuse(f"the tensors end at {end}, but the file has {size} bytes")
    return tuple(placed.values())


def _pad(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


class _Cursor:
    """Reads a stream in large pieces and never beyond `limit` bytes."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._piece = b""
        self._at = 0  # in the piece
        self._before = 0  # bytes of the stream in front of the piece

    @property
    def position(self) -> int:
        return self._before + self._at

    def require(self, count: int) -> None:
        if count > self._limit - self.position:
            _refuse(f"the header needs {count} bytes at {self.position}, of {self._limit} there may be")

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._piece):
            self._fill(count)
            end = count
        taken = self._piece[self._at : end]
        self._at = end
        return taken

    def skip(self, count: int) -> None:
        self.require(count)
        while count:
            count -= len(self.take(min(count, _CHUNK)))

    def skip_texts(self, count: int) -> None:
        self.require(8 * count)
        while count:
            at, end = self._at, len(self._piece)
            while count and at + 8 <= end:
                behind = at + 8 + _LENGTH.unpack_from(self._piece, at)[0]
                if behind > end:
                    break
                at, count = behind, count - 1
            self._at = at
            if count:  # this one crosses the end of the piece
                self.skip(self.number(8))
                count -= 1

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def text(self, longest: int) -> str:
        length = self.number(8)
        if length > longest:
            _refuse(f"a text of {length} bytes is longer than {longest}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            _refuse("a text is not UTF-8")

    def name(self, longest: int) -> str:
        text = self.text(longest)
        if not text or not text.isprintable():
            _refuse(f"{text[:60]!r} is not a name")
        return text

    def _fill(self, count: int) -> None:
        self.require(count)
        rest = self._piece[self._at :]
        self._before += self._at
        self._at = 0
        self._piece = rest + self._stream.read(min(max(count, _CHUNK), self._limit - self._before) - len(rest))
        if len(self._piece) < count:
            _refuse("the file is cut short")


def _refuse(reason: str) -> NoReturn:
    raise TrustError(Refusal.HOSTILE_MODEL, f"not a GGUF file to be used: {reason}")
