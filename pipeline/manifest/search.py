"""How a variant's recipe was found: what was to be spent, what was promised, what was measured, and beside what.

Rules: figures are of the calibration examples, which the search sees; those of the golden prompts, which it does not,
are the evidence's.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pipeline.manifest.encoding import Count, Record


class Figures(Record):
    """KL(unquantized || quantized) in nats on the calibration examples: mean over all positions, mean over those that
    predict the answer, and the 99th percentile over all."""

    mean_kl: float
    answer_kl: float
    p99_kl: float


class Point(Record):
    """A recipe as a whole model: bytes of its matrices, bytes read and instructions spent in them for each token (None
    where a kernel of the target has not been counted), the predicted mean KL, and what was measured."""

    name: str
    size: Count
    bytes_per_token: Count
    instructions_per_token: float | None
    predicted_kl: float | None = None
    measured: Figures


class Found(Record):
    """How a recipe was found.

    `limits` are the budget in bytes of all matrices, bytes a token and instructions a token; `bound` is a mean KL that
    no mix of the survey's options could be predicted to stay below within them. `solved` is the best of the prediction,
    `chosen` the best of those that were `measured`, with its `types` by tensor; `front` is what was measured, at each
    preset's size too, and is bettered by nothing in bytes, instructions and mean KL; `losses` are the predicted mean KL
    of each matrix at each type.
    """

    budget: dict[str, Any]
    limits: dict[str, float]
    bound: float
    solved: Point
    chosen: Point
    types: dict[str, str]
    front: list[Point] = Field(default_factory=list)
    presets: list[Point] = Field(default_factory=list)
    losses: dict[str, dict[str, float]] = Field(default_factory=dict)
    measured: Count
