"""A recipe: the per-tensor quantization types of a GGUF variant.

Rules: `base` is a preset of llama.cpp; `tensors` is a list of PATTERN=TYPE as `llama-quantize --tensor-type-file` reads
it, regular expressions over GGUF tensor names of which the first match wins. Equal recipes have equal digests, and so
give one file.
"""

from __future__ import annotations

import hashlib
import re

from pydantic import Field, field_validator

from pipeline.catalog.document import Document

# llama.cpp `enum llama_ftype` (include/llama.h): the presets llama-quantize offers.
PRESETS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11,
    "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ2_XXS": 19,
    "IQ2_XS": 20, "Q2_K_S": 21, "IQ3_XS": 22, "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25, "IQ3_S": 26, "IQ3_M": 27,
    "IQ2_S": 28, "IQ2_M": 29, "IQ4_XS": 30, "IQ1_M": 31, "BF16": 32,
}  # fmt: skip

# ggml `enum ggml_type` (ggml/include/ggml.h): the types a tensor can have.
TENSOR_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
    "Q5_K": 13, "Q6_K": 14, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19, "IQ4_NL": 20, "IQ3_S": 21,
    "IQ2_S": 22, "IQ4_XS": 23, "IQ1_M": 29, "BF16": 30,
}  # fmt: skip


class Recipe(Document):
    """How one GGUF variant is quantized."""

    base: str
    imatrix: bool = True
    tensors: list[str] = Field(default_factory=list)

    @field_validator("base")
    @classmethod
    def _known_preset(cls, value: str) -> str:
        if value not in PRESETS:
            raise ValueError(f"allowed are {', '.join(PRESETS)}")
        return value

    @field_validator("tensors")
    @classmethod
    def _known_types(cls, value: list[str]) -> list[str]:
        for entry in value:
            pattern, _, kind = entry.rpartition("=")
            if not pattern or kind not in TENSOR_TYPES:
                raise ValueError(f"{entry!r} is not PATTERN=TYPE with a type of {', '.join(TENSOR_TYPES)}")
            try:
                re.compile(pattern)
            except re.error as e:
                raise ValueError(f"{pattern!r} is not a regular expression: {e}") from e
        return value

    @property
    def overrides(self) -> dict[str, str]:
        """The patterns with their types, in the order in which they are tried."""
        found: dict[str, str] = {}
        for entry in self.tensors:
            pattern, _, kind = entry.rpartition("=")
            found.setdefault(pattern, kind)
        return found

    @property
    def digest(self) -> str:
        """sha256 over everything that affects the bytes; the order of `tensors` counts: the first match wins."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
