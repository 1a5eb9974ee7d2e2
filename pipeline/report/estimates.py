"""What was not measured but follows: what memory bounds decoding to, and whose prices a cost was worked out with.

Rules: a bound is called one wherever it is shown, never a speed; a price is cited only where it gives the very cost
that the gate wrote down.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.catalog.names import GGUF_TIERS, RunnerClass, Target
from pipeline.catalog.params import Cost, Roofline
from pipeline.manifest.evidence import Measurement
from pipeline.manifest.gate import row
from pipeline.manifest.statement import Row
from pipeline.report.subject import Part

# The runner class that measures on the board a roofline is of.
BOARD = {Target.ARM64: RunnerClass.PI5, Target.RISCV64: RunnerClass.RISCV}


@dataclass(frozen=True)
class Bound:
    """Tokens a second that a board's memory allows at most; `measured` beside it where the board itself was asked."""

    variant: str
    roofline: Roofline
    bytes_per_token: int
    measured: float | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.roofline.bytes_per_second / self.bytes_per_token


@dataclass(frozen=True)
class Price:
    """What an hour on a runner class was taken to cost; None where these prices give other costs than the gate's."""

    runner: RunnerClass
    cost: Cost | None


def bounds(parts: Sequence[Part], rooflines: Mapping[Target, Roofline]) -> tuple[Bound, ...]:
    """Return the bound of every variant that is meant for a board with a roofline."""
    return tuple(_bounds(parts, rooflines))


def _bounds(parts: Sequence[Part], rooflines: Mapping[Target, Roofline]) -> Iterator[Bound]:
    for part in parts:
        roofline = rooflines.get(part.variant.target)
        read = next((c.evidence.memory.bytes_per_token for c in part.checks), 0)
        if roofline is None or part.variant.tier not in GGUF_TIERS or not read:
            continue
        yield Bound(part.variant.name, roofline, read, _measured(part, BOARD.get(part.variant.target)))


def _measured(part: Part, board: RunnerClass | None) -> float | None:
    found = (c.measurement for c in part.checks if c.evidence.runner is board and c.evidence.stand_in is None)
    clock: Measurement | None = next(found, None)
    return 1e3 / clock.per_token_ms.p50 if clock and clock.per_token_ms.p50 else None


def prices(parts: Sequence[Part], rows: Sequence[Row], costs: Mapping[RunnerClass, Cost]) -> tuple[Price, ...]:
    """Return the price of every runner class for which the gate wrote a cost down."""
    written = {(r.variant, r.runner): r.cost_per_1k_usd for r in rows if r.cost_per_1k_usd is not None}
    checks = [c for part in parts for c in part.checks if (c.evidence.variant, c.evidence.runner) in written]
    found: dict[RunnerClass, bool] = {}
    for check in checks:
        key = check.evidence.variant, check.evidence.runner
        cost = costs.get(key[1])
        again = row(check, cost).cost_per_1k_usd
        same = again is not None and math.isclose(again, written[key] or 0.0, rel_tol=1e-9)
        found[key[1]] = found.get(key[1], True) and same
    return tuple(Price(runner, costs.get(runner) if same else None) for runner, same in sorted(found.items()))
