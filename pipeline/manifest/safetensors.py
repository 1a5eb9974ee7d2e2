"""The header of a safetensors file, read within bounds before anything else opens the file.

Source: https://github.com/huggingface/safetensors#format; the types are those of its `tensor.rs`.

Rules: the tensors fill the file without gap or overlap; no key stands twice; shapes, types and offsets agree. The
format allows a header of 100 MB, of which Python would make gigabytes: no shard needs more than a tenth, and no more
is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO, NoReturn

from pipeline.errors import Refusal, TrustError
from pipeline.manifest.tensor import MAX_EXTENT, MAX_TENSORS, Tensor

MAX_HEADER = 10_000_000  # bytes
MAX_DIMENSIONS = 16

# Bits of one element.
TYPES = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


@dataclass(frozen=True)
class Header:
    """What the file says of itself; the tensors stand in the order of their data."""

    metadata: Mapping[str, str]
    tensors: tuple[Tensor, ...]


def read_header(stream: BinaryIO, size: int) -> Header:
    """Return the header of a safetensors file.

    Args:
        stream: the file, at its start; it is read to the header's end.
        size: bytes the file has.

    Raises:
        TrustError: HOSTILE_MODEL, when the file is not exactly what the format demands.
    """
    length = int.from_bytes(_exactly(stream, 8), "little")
    if length > min(MAX_HEADER, size - 8):
        _refuse(f"a header of {length} bytes in a file of {size}")
    document = _document(_exactly(stream, length))
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(_is_text(part) for pair in metadata.items() for part in pair):
        _refuse("the metadata are not texts")
    if len(document) > MAX_TENSORS:
        _refuse(f"{len(document)} tensors are too many")
    start = 8 + length
    tensors = [_tensor(name, entry, start) for name, entry in document.items()]
    tensors.sort(key=lambda t: (t.offset, t.size))
    _check_filled(tensors, start, size)
    return Header(MappingProxyType(metadata), tuple(tensors))


def _document(header: bytes) -> dict[str, Any]:
    if not header.startswith(b"{"):
        _refuse("the header is not a JSON object")
    try:
        document: dict[str, Any] = json.loads(header.decode(), object_pairs_hook=_unique, parse_int=_whole)
    except (ValueError, RecursionError):
        _refuse("the header is not JSON in UTF-8")
    return document


def _tensor(name: str, entry: object, start: int) -> Tensor:
    if not name or not name.isprintable():
        _refuse(f"{name[:60]!r} is not a tensor's name")
    match entry:
        case {"dtype": str(type_), "shape": list(shape), "data_offsets": [begin, end], **rest} if not rest:
            pass
        case _:
            _refuse(f"tensor {name[:60]!r} is not described by dtype, shape and data_offsets")
    if type_ not in TYPES:
        _refuse(f"tensor {name[:60]!r} is of unknown type {type_[:20]!r}")
    if len(shape) > MAX_DIMENSIONS or not all(_is_extent(n) for n in [*shape, begin, end]):
        _refuse(f"tensor {name[:60]!r} has a shape or offsets that are not whole numbers")
    bits = math.prod(shape) * TYPES[type_]
    if bits % 8 or bits // 8 != end - begin:
        _refuse(f"tensor {name[:60]!r} has {end - begin} bytes, but not its shape")
    return Tensor(name, type_, tuple(shape), start + begin, end - begin)


def _is_extent(number: object) -> bool:
    return type(number) is int and number <= MAX_EXTENT  # JSON's true is an int to Python


def _whole(digits: str) -> int:
    if digits.startswith("-"):  # of which -0 would otherwise pass for 0
        _refuse("a number is negative")
    return int(digits)


def _is_text(value: object) -> bool:
    # JSON can name halves of surrogate pairs, which no encoding can write.
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _check_filled(tensors: list[Tensor], start: int, size: int) -> None:
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            _refuse(f"tensor {tensor.name[:60]!r} does not begin where the one before it ends")
        end += tensor.size
    if end != size:
        _refuse(f"the tensors end at {end}, but the file has {size} bytes")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse("a key stands twice")
    return found


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        _refuse("the file is cut short")
    return data


def _refuse(reason: str) -> NoReturn:
    raise TrustError(Refusal.HOSTILE_MODEL, f"not a safetensors file to be used: {reason}")
