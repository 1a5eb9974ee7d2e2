"""ggml's quantizers in this process: what a matrix is worth once a type has kept it.

Rules: the functions llama-quantize calls, row by row, so what comes back is what a file would hold; rows are given in
slabs, so memory does not grow with the matrix; nothing is written anywhere.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.catalog.recipe import TENSOR_TYPES
from pipeline.errors import ToolError

SLAB = 1 << 22  # values quantized at a time: 16 MiB of f32


class _Traits(ctypes.Structure):
    """The head of ggml's `struct ggml_type_traits` (ggml/include/ggml.h)."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@cache
def _library() -> Any:
    try:
        import llama_cpp

        found = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    except (ImportError, OSError, RuntimeError) as e:
        raise ToolError(f"ggml cannot be loaded: {e}", hint="make setup builds and installs it") from e
    pointer, count, kind = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_quantize_chunk.argtypes = (kind, pointer, pointer, count, count, count, pointer)
    found.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    found.ggml_get_type_traits.argtypes = (kind,)
    return found


def _traits(kind: str) -> Any:
    return _library().ggml_get_type_traits(TENSOR_TYPES[kind]).contents


def rounded(
    matrix: NDArray[np.float32], kind: str, importance: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return the matrix as a file of the type would give it back.

    Args:
        matrix: (rows, columns), of which rows are whole blocks of the type.
        importance: mean squared activations, (columns), where there is an importance matrix.
    """
    out = np.empty(matrix.shape, np.float32)
    columns = matrix.shape[1]
    library, traits, number = _library(), _traits(kind), TENSOR_TYPES[kind]
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    step = max(1, SLAB // columns)
    buffer = np.empty(step * columns // traits.blck_size * traits.type_size, np.uint8)
    for at in range(0, len(matrix), step):
        slab = np.ascontiguousarray(matrix[at : at + step], np.float32)
        library.ggml_quantize_chunk(
            number, slab.ctypes.data, buffer.ctypes.data, 0, len(slab), columns,
            None if weights is None else weights.ctypes.data,
        )  # fmt: skip
        traits.to_float(buffer.ctypes.data, out[at : at + step].ctypes.data, slab.size)
    return out
