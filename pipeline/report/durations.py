"""What a check's clock saw, one duration after another: pytest-benchmark's JSON, or the bare durations of a board.

Rules: durations are shown only beside the measurement that they are of, which their percentiles tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import StageError
from pipeline.manifest.evidence import Measurement, Percentiles, quantile

# A measurement keeps four digits behind the point, in milliseconds.
_ROUNDED = 1e-4


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class _Parameters(_Part):
    name: str


class _Stats(_Part):
    data: list[float]  # seconds


class _Benchmark(_Part):
    params: _Parameters
    stats: _Stats


class _File(_Part):
    benchmarks: list[_Benchmark] = Field(default_factory=list)
    durations_ns: dict[str, list[int]] = Field(default_factory=dict)

    def milliseconds(self) -> dict[str, tuple[float, ...]]:
        replayed = {b.params.name: _scaled(b.stats.data, 1e3) for b in self.benchmarks}
        return replayed | {name: _scaled(row, 1e-6) for name, row in self.durations_ns.items()}


@dataclass(frozen=True)
class Durations:
    """Milliseconds: to each prompt's first token, to every later token, and of each whole inference."""

    ttft_ms: tuple[float, ...]
    per_token_ms: tuple[float, ...]
    inference_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not (self.ttft_ms and self.per_token_ms and self.inference_ms):
            raise ValueError("a row of durations is empty")

    def are_of(self, measured: Measurement) -> bool:
        """Return whether these are the durations that a measurement sums up."""
        pairs = (
            (self.ttft_ms, measured.ttft_ms),
            (self.per_token_ms, measured.per_token_ms),
            (self.inference_ms, measured.inference_ms),
        )
        return all(_sums_up(row, figures) for row, figures in pairs)


def parse(data: bytes, name: str) -> Durations:
    """Return the durations in a file that `check` wrote; raises StageError where it is not as `check` writes it."""
    try:
        rows = _File.model_validate_json(data).milliseconds()
        return Durations(rows["time_to_first_token"], rows["time_per_output_token"], rows["inference"])
    except (ValueError, KeyError) as e:  # pydantic's errors are ValueErrors
        raise StageError(f"{name} is not what a check writes", hint="remove it, or check again") from e


def _scaled(row: Iterable[float], factor: float) -> tuple[float, ...]:
    return tuple(factor * value for value in row)


def _sums_up(row: tuple[float, ...], figures: Percentiles) -> bool:
    found = quantile(row, 0.5), quantile(row, 0.95)
    return all(abs(a - b) <= _ROUNDED for a, b in zip(found, (figures.p50, figures.p95), strict=True))
