"""A recipe: the per-tensor quantization types of a GGUF variant.

Rules: `base` is a preset of llama.cpp; `tensors` is a list of PATTERN=TYPE as `llama-quantize --tensor-type-file` reads
it, regular expressions over GGUF tensor names of which the first match wins. Equal recipes have equal digests, and so
give one file. A `Search` stands in a recipe's place where stage `search` is to find it.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from pipeline.catalog.document import Document
from pipeline.catalog.names import FAMILY

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


def known_preset(value: str) -> str:
    """Return a preset's name; raises ValueError where llama.cpp has none such."""
    if value not in PRESETS:
        raise ValueError(f"allowed are {', '.join(PRESETS)}")
    return value


class Recipe(Document):
    """How one GGUF variant is quantized."""

    base: Annotated[str, Field(description="a preset of llama.cpp, for what 'tensors' does not name")]
    imatrix: Annotated[bool, Field(description="use the importance matrix")] = True
    tensors: list[str] = Field(default_factory=list, description="PATTERN=TYPE, the first match wins")
    no_imatrix: list[str] = Field(
        default_factory=list, description="names of tensors that are rounded without the importance matrix"
    )

    @field_validator("base")
    @classmethod
    def _known_preset(cls, value: str) -> str:
        return known_preset(value)

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


class Budget(Document):
    """What a variant may cost; the recipe that parts least from the unquantized tier within it is searched for."""

    preset: Annotated[
        str | None, Field(description="at most its bytes, and its instructions a token times 'instructions_ratio_max'")
    ] = None
    bytes_max: Annotated[int | None, Field(ge=1, description="bytes of the file")] = None
    bytes_per_token_max: Annotated[int | None, Field(ge=1, description="weight bytes read to decode a token")] = None
    instructions_ratio_max: Annotated[float, Field(gt=0, description="against the preset's")] = 1.05
    types: Annotated[
        list[str] | None, Field(min_length=1, description="types to choose from; null: those the target runs fast")
    ] = None
    measured: Annotated[int, Field(ge=1, le=1000, description="candidates quantized and measured as a whole")] = 24
    families: list[Annotated[str, Field(pattern=f"^{FAMILY}$")]] = Field(
        default_factory=list, description="prompt families that get a variant of their own where that pays"
    )

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, value: str | None) -> str | None:
        return value if value is None else known_preset(value)

    @field_validator("types")
    @classmethod
    def _known_types(cls, value: list[str] | None) -> list[str] | None:
        if unknown := [kind for kind in value or [] if kind not in TENSOR_TYPES]:
            raise ValueError(f"{unknown[0]} is none of {', '.join(TENSOR_TYPES)}")
        return value

    @field_validator("families")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        if twice := [family for n, family in enumerate(value) if family in value[:n]]:
            raise ValueError(f"{twice[0]} stands twice")
        return value

    @model_validator(mode="after")
    def _bounded(self) -> Budget:
        if self.preset is None and self.bytes_max is None and self.bytes_per_token_max is None:
            raise ValueError("needs one of 'preset', 'bytes_max' and 'bytes_per_token_max'")
        return self


class Search(Document):
    """In place of a recipe: it is to be found within a budget."""

    search: Budget


def _which(value: Any) -> str:
    return "search" if isinstance(value, Search) or (isinstance(value, dict) and "search" in value) else "recipe"


Chosen = Annotated[Annotated[Recipe, Tag("recipe")] | Annotated[Search, Tag("search")], Discriminator(_which)]
