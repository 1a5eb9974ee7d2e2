"""Instructions a weight of each type costs on each target, and the types a target runs fast.

Rules: the figures are counted, not estimated: `python -m pipeline.stages.kernel_costs` (make kernel-costs) writes
`instructions.json` anew with the released programs, and a test counts some of them again. llama.cpp chooses a tensor's
kernel by its type when it loads the model (ggml/src/ggml-cpu/repack.cpp repacks some; ggml-cpu/arch/*/quants.c has the
rest), so a count tells what the source alone would leave to guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pydantic import Field

from pipeline.catalog.names import Target
from pipeline.manifest.encoding import Record

FILE = Path(__file__).with_name("instructions.json")
FLOATS = frozenset({"F32", "F16", "BF16"})
SLOW = 6.0  # times the instructions of the target's fastest quantized type: what needs more is not fast


class Counted(Record):
    """One target's counts; `per_weight` are instructions to multiply one weight while decoding one token."""

    emulator: str
    cpu: str
    per_weight: dict[str, float]


class Counts(Record):
    """All targets' counts, with the commit of llama.cpp whose kernels they are of."""

    llama_commit: str
    targets: dict[Target, Counted] = Field(default_factory=dict)


@cache
def counts() -> Counts:
    """Return the committed table."""
    return Counts.model_validate_json(FILE.read_bytes())


def per_weight(target: Target) -> Mapping[str, float]:
    """Return instructions a weight by type."""
    return counts().targets[target].per_weight


def fast(target: Target) -> list[str]:
    """Return the quantized types a target has a fast kernel for, sorted."""
    costs = {kind: cost for kind, cost in per_weight(target).items() if kind not in FLOATS}
    return sorted(kind for kind, cost in costs.items() if cost <= SLOW * min(costs.values()))
