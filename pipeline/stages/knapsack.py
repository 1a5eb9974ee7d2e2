"""One option of each group, so that losses add up to the least within limits: a multiple-choice knapsack.

Rules: pure; the solver is HiGHS (Huangfu and Hall 2018, doi:10.1007/s12532-017-0130-5) as SciPy calls it; its
bound is returned with the choice, so that "the best" is a statement with a proof.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

GAP = 1e-4  # relative: below what losses are known to
TOLERANCE = 2e-6  # relative: the solver may pass a limit by half of it


@dataclass(frozen=True)
class Option:
    """What choosing it loses, and what it takes of each limited thing."""

    loss: float
    takes: Mapping[str, float]


@dataclass(frozen=True)
class Solution:
    """The place of the chosen option in each group, their losses' sum, and a bound no choice can fall below."""

    chosen: tuple[int, ...]
    loss: float
    bound: float


def solve(groups: Sequence[Sequence[Option]], limits: Mapping[str, float]) -> Solution | None:
    """Return the best choice that takes at most `limits`, None where there is none."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    if any(limit < sum(min(o.takes[name] for o in group) for group in groups) for name, limit in limits.items()):
        return None
    kept = [(number, place, option) for number, group in enumerate(groups) for place, option in _best(group)]
    least = sum(min(option.loss for option in group) for group in groups)
    scale = 1 / least if least > 0 else 1.0
    columns = np.arange(len(kept))
    one_each = csr_array((np.ones(len(kept)), ([number for number, _, _ in kept], columns)))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for name, limit in limits.items():
        # In units of the limit, so that the solver's tolerance is relative to it.
        row = np.array([option.takes[name] / limit for _, _, option in kept])
        constraints.append(LinearConstraint(csr_array(row[None]), -np.inf, 1))
    with _quiet():
        found = milp(
            np.array([option.loss * scale for _, _, option in kept]),
            integrality=np.ones(len(kept)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": GAP},
        )
    if found.x is None:
        return None
    chosen = tuple(place for (_, place, _), x in zip(kept, found.x, strict=True) if x > 0.5)
    options = [group[place] for group, place in zip(groups, chosen, strict=True)]
    for name, limit in limits.items():
        if sum(option.takes[name] for option in options) > limit:
            return solve(groups, {**limits, name: limit * (1 - TOLERANCE)})
    return Solution(chosen, sum(option.loss for option in options), float(found.mip_dual_bound) / scale)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep HiGHS from writing to standard output, which belongs to the command's result: some of its lines cannot be
    switched off."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _best(group: Sequence[Option]) -> list[tuple[int, Option]]:
    """The options of a group that no other betters in everything, with their places; of equals the first."""
    return [
        (place, option)
        for place, option in enumerate(group)
        if not any(_betters(other, option, first=at < place) for at, other in enumerate(group) if at != place)
    ]


def _betters(one: Option, other: Option, *, first: bool) -> bool:
    pairs = [(one.loss, other.loss), *((taken, other.takes[name]) for name, taken in one.takes.items())]
    return all(a <= b for a, b in pairs) and (first or any(a < b for a, b in pairs))
