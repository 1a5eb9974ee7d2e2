"""The best choice within limits, compared with every choice there is."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stages.knapsack import Option, Solution, solve

OPTIONS = st.builds(
    lambda loss, size, cost: Option(loss, {"bytes": size, "cost": cost}),
    st.floats(1e-6, 10), st.integers(1, 50), st.floats(0.1, 9),
)  # fmt: skip
GROUPS = st.lists(st.lists(OPTIONS, min_size=1, max_size=4), min_size=1, max_size=5)


def _best(groups: list[list[Option]], limits: dict[str, float]) -> float | None:
    """Every choice is looked at."""
    found = [
        sum(o.loss for o in choice)
        for choice in product(*groups)
        if all(sum(o.takes[name] for o in choice) <= limit for name, limit in limits.items())
    ]
    return min(found, default=None)


@settings(max_examples=60)
@given(groups=GROUPS, size=st.integers(5, 200), cost=st.floats(1, 40))
def test_no_choice_is_better(groups: list[list[Option]], size: int, cost: float) -> None:
    """What is found is within its limits, as good as the best of all choices, and its bound says so."""
    limits = {"bytes": float(size), "cost": cost}
    found, best = solve(groups, limits), _best(groups, limits)
    if found is None or best is None:
        assert found is None
        assert best is None
        return
    chosen = [group[place] for group, place in zip(groups, found.chosen, strict=True)]
    assert all(sum(o.takes[name] for o in chosen) <= limit for name, limit in limits.items())
    assert abs(found.loss - best) <= 1e-4 * best
    assert found.bound <= best * (1 + 1e-6)


def test_a_limit_that_is_met_exactly_can_be_kept() -> None:
    """A budget that one mix fills to the byte is enough for it."""
    groups = [[Option(1.0, {"bytes": 3}), Option(0.5, {"bytes": 5})], [Option(2.0, {"bytes": 4})]]
    for limit, chosen, loss in ((9.0, (1, 0), 2.5), (8.0, (0, 0), 3.0)):
        found = solve(groups, {"bytes": limit})
        assert found is not None
        assert (found.chosen, found.loss) == (chosen, loss)
        assert found.bound == pytest.approx(loss)
    assert solve(groups, {"bytes": 6.0}) is None


@pytest.mark.parametrize("limit", [0.0, -1.0, -1e9])
def test_nothing_fits_no_room(limit: float) -> None:
    """A limit of nothing, or of less, is one that no choice keeps."""
    assert solve([[Option(1.0, {"bytes": 3}), Option(0.5, {"bytes": 5})]], {"bytes": limit}) is None


def test_losses_of_nothing_are_solved_too() -> None:
    """Options without any loss do not upset the scale."""
    assert solve([[Option(0.0, {"bytes": 1})]], {"bytes": 1.0}) == Solution((0,), 0.0, 0.0)
