"""A tier's survey: what each of its matrices loses at each type, and what llama.cpp's presets lose as a whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from pydantic import Field, ValidationError

from pipeline.errors import StageError
from pipeline.manifest.encoding import Count, Record
from pipeline.manifest.gguf import TENSOR_TYPES
from pipeline.stages.trials import Trial

BLOCKS = {name: (elements, size) for name, elements, size in TENSOR_TYPES.values()}
HINT = "write the variant's recipe out in models/*.yaml instead of 'search'"
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


def size(kind: str, columns: int, rows: int) -> int:
    """Return the bytes of a matrix of a type."""
    elements, block = BLOCKS[kind]
    return columns // elements * block * rows


class Option(Record):
    """A type a matrix could have, rounded with the importance matrix or without.

    `kl` is the predicted KL(unquantized || quantized) in nats, summed over positions: by fold, by family, and of
    positions that predict the prompt (first) and the answer (second).
    """

    type: str
    imatrix: bool
    kl: list[list[list[float]]]


class Surveyed(Record):
    """A matrix by its GGUF name: values of a row, rows, and its options."""

    name: str
    columns: Count
    rows: Count
    options: list[Option]


class Preset(Record):
    """A preset of llama.cpp as a whole model."""

    name: str
    imatrix: bool
    trial: Trial

    @property
    def label(self) -> str:
        return f"{self.name}+imatrix" if self.imatrix else self.name


class Survey(Record):
    """All matrices of a tier; `positions` counts by fold, family, prompt or answer. Empty where nothing searches."""

    families: list[str] = Field(default_factory=list)
    positions: list[list[list[Count]]] = Field(default_factory=list)
    matrices: list[Surveyed] = Field(default_factory=list)
    presets: list[Preset] = Field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Survey:
        """Return the survey in a file; raises StageError where there is none."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as e:
            raise StageError(f"{path}: no survey: {str(e).splitlines()[0]}", hint="dvc repro") from e

    def total(self, table: list[list[list[float]]], weigh: Weigh) -> float:
        """Return a table's weighted sum over folds, families, and prompt or answer."""
        return sum(
            weigh(fold, family, part) * value
            for fold, rows in enumerate(table)
            for family, row in zip(self.families, rows, strict=True)
            for part, value in enumerate(row)
        )

    @cached_property
    def tied(self) -> bool:
        """Whether the embedding's matrix is the output's too."""
        return all(matrix.name != OUTPUT for matrix in self.matrices)


Weigh = Callable[[int, str, int], float]
