"""How a variant's recipe was found: what was to be spent, what was promised, what was measured, and beside what.

Rules: figures are of the calibration examples, which the search sees; those of the golden prompts, which it does not,
are the evidence's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

from pydantic import Field

from pipeline.manifest.encoding import Count, Record

BYTES, READ, INSTRUCTIONS = "bytes", "bytes a token", "instructions a token"  # what can be limited


class Figures(Record):
    """KL(unquantized || quantized) in nats on the calibration examples: mean over all positions, mean over those that
    predict the answer, and the 99th percentile over all."""

    mean_kl: float
    answer_kl: float
    p99_kl: float


class Point(Record):
    """A recipe as a whole model: bytes of its matrices, bytes read and instructions spent in them for each token, the
    predicted mean KL, and what was measured."""

    name: str
    size: Count
    bytes_per_token: Count
    instructions_per_token: float
    predicted_kl: float | None = None
    measured: Figures


class Tuned(Record):
    """What a recipe tuned to a prompt family is worth on examples that the tuning did not see.

    `general` and `own` are KL in nats a position with the variant's recipe and with the family's; `ratio` is the second
    by the first, from `low` to `high` in 95 of 100 draws of the `examples`. Where it `pays`, a variant is tuned to it.
    """

    family: str
    examples: Count
    general: float
    own: float
    ratio: float
    low: float
    high: float
    pays: bool


class Found(Record):
    """How a recipe was found.

    `limits` are the budget in bytes of all matrices, bytes a token and instructions a token; `bound` is a mean KL that
    no mix of the survey's options could be predicted to stay below within them. `solved` is the best of the prediction,
    `chosen` the best of those that were `measured`, with its `types` by tensor; `front` is what was measured, at each
    preset's size too, and is bettered by nothing in bytes, instructions and mean KL; `losses` are the predicted mean KL
    of each matrix at each type. Of a variant tuned to a family all figures are of that family's examples. `tuned` says
    of each family that was asked for whether tuning to it pays.
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
    tuned: list[Tuned] = Field(default_factory=list)

    @property
    def peer(self) -> Point | None:
        """The best preset within the budget's bytes."""
        return best_within(self.presets, self.limits)


def best_within(presets: Iterable[Point], limits: Mapping[str, float]) -> Point | None:
    """Return the preset of least mean KL that keeps limits in bytes, None where none does."""
    within = [p for p in presets if p.size <= limits.get(BYTES, inf) and p.bytes_per_token <= limits.get(READ, inf)]
    return min(within, key=lambda p: p.measured.mean_kl, default=None)


def unbettered(costs: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Return those of several costs, ascending and each once, that no other is at most as great as in all of them."""
    once = sorted(set(costs))
    return [one for one in once if not any(other != one and _at_most(other, one) for other in once)]


def _at_most(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True))
