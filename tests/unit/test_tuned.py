"""Whether tuning to a prompt family pays: by a tenth, surely, and on enough examples to tell."""

from __future__ import annotations

import pytest

from pipeline.stages.tuned import ENOUGH, Pair, judged

EVEN: list[Pair] = [(0.5, 1.0)] * 16
UNSURE: list[Pair] = [(0.1, 1.0)] * 10 + [(2.5, 1.0)] * 6


@pytest.mark.parametrize(
    ("pairs", "pays"),
    [
        pytest.param(EVEN, True, id="half the KL of every example"),
        pytest.param([(0.95, 1.0)] * 16, False, id="surely, but by a twentieth"),
        pytest.param([(own * 0.85, before) for own, before in UNSURE], False, id="by a tenth, but not surely"),
        pytest.param([(1.2, 1.0)] * 16, False, id="worse"),
        pytest.param(EVEN[:ENOUGH], True, id="just enough examples"),
        pytest.param(EVEN[: ENOUGH - 1], False, id="too few examples"),
        pytest.param([(0.0, 0.0)] * 16, False, id="nothing to lose"),
    ],
)
def test_tuning_pays_by_a_tenth_and_surely(pairs: list[Pair], pays: bool) -> None:
    """The ratio and the whole of its interval decide, over examples enough."""
    found = judged("lookup", pairs, positions=160)
    assert found.pays is pays
    assert found.low <= found.ratio <= found.high
    assert (found.family, found.examples) == ("lookup", len(pairs))
    assert found.own == pytest.approx(sum(own for own, _ in pairs) / 160, rel=1e-5)
