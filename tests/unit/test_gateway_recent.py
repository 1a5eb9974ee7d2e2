"""The last hour's requests in little memory: what is read off them, and what is forgotten."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.peers.slo import OBJECTIVES
from pipeline.peers.status import Pool
from pipeline.serving.gateway.journal import Line
from pipeline.serving.gateway.recent import HOUR, LAST, Recent

EDGE_P50, EDGE_P95, GLOBAL_P95, AVAILABILITY = OBJECTIVES


def line(ms: float = 50.0, pool: str = "edge", **changes: Any) -> Line:
    """Return a request that was answered whole."""
    usual = {"outcome": "answered", "reason": "tiny_edge", "counted": "tokenizer", "total_ms": ms}
    return Line("r", "chat", pool=pool, **{**usual, **changes})


def filled(*lines: Line, at: float = 6000.0) -> Recent:
    recent = Recent()
    for each in lines:
        recent.note(each, at)
    return recent


@given(st.lists(st.floats(1.001, 250_000), min_size=1, max_size=200), st.sampled_from([0.5, 0.95]))
def test_quantiles_are_right_to_a_tenth(times: list[float], share: float) -> None:
    """Whatever the times, the quantile differs from the exact one by a tenth at most."""
    found = filled(*map(line, times)).quantile_ms(Pool.EDGE, share, 6000.0, 5)
    exact = sorted(times)[ceil(len(times) * share) - 1]
    assert found is not None
    assert exact / 1.1 <= found <= exact * 1.1


def test_the_first_token_counts_where_there_is_one() -> None:
    """A streamed answer began with its first token, however long the rest took."""
    recent = filled(line(9000.0, first_ms=40.0))
    assert recent.burn(EDGE_P50, 6000.0, 5) == 0
    assert recent.quantile_ms(Pool.EDGE, 0.95, 6000.0, 5) == pytest.approx(40, rel=0.1)


def test_bounds_are_exact() -> None:
    """An answer at the promised time is within it, one a hair later is not; each objective counts its own pool."""
    recent = filled(line(80.0), line(80.001), line(300.0), line(300.001), line(150.0, "nvlink"), line(150.1, "nvlink"))
    assert recent.burn(EDGE_P50, 6000.0, 5) == pytest.approx(3 / 4 / 0.5)
    assert recent.burn(EDGE_P95, 6000.0, 5) == pytest.approx(1 / 4 / 0.05)
    assert recent.burn(GLOBAL_P95, 6000.0, 5) == pytest.approx(3 / 6 / 0.05)


def test_only_faults_cost_availability() -> None:
    """What a client did wrong, or left, counts neither way; a server that is missing does."""
    wrong = [line(outcome="refused", code=code, reason=None) for code in ("invalid_value", "deadline", "batch_yields")]
    recent = filled(line(), line(), line(), *wrong, line(outcome="left"))
    assert recent.burn(AVAILABILITY, 6000.0, 5) == 0
    recent.note(line(outcome="refused", code="no_endpoint", reason=None, pool="none"), 6000.0)
    assert recent.burn(AVAILABILITY, 6000.0, 5) == pytest.approx(1 / 4 / 0.001)
    assert recent.answers(Pool.EDGE, 6000.0, 5) == 3


def test_what_is_long_past_is_forgotten() -> None:
    """Answers leave the five minutes, then the hour; without any there is no number."""
    recent = filled(line(1000.0))
    assert recent.burn(EDGE_P95, 6000.0 + 300, 5) == pytest.approx(20)
    assert recent.burn(EDGE_P95, 6000.0 + 360, 5) is None
    assert recent.quantile_ms(Pool.EDGE, 0.5, 6000.0 + 360, 5) is None
    assert recent.burn(EDGE_P95, 6000.0 + 3600, HOUR) == pytest.approx(20)
    assert recent.burn(EDGE_P95, 6000.0 + 3660, HOUR) is None
    assert recent.reasons(6000.0 + 360, 5) == []


def test_memory_is_bounded() -> None:
    """Days of requests leave an hour of minutes and the last requests."""
    recent = Recent()
    for minute in range(3000):
        recent.note(line(float(minute)), minute * 60.0)
    assert recent.answers(Pool.EDGE, 2999 * 60.0, 10_000) == HOUR + 1
    assert [each.total_ms for _, each in recent.last] == [3000.0 - LAST + n for n in range(LAST)]


def test_reasons_are_counted_with_refusals() -> None:
    """The most frequent first; of a refused request the code; what was no question to routing is left out."""
    refused = line(outcome="refused", code="no_edge", reason=None, pool="none")
    recent = filled(line(), refused, line(), line(outcome="refused", code="invalid_api_key", reason=None, counted=None))
    assert recent.reasons(6000.0, 5) == [("edge", "tiny_edge", 2), ("none", "no_edge", 1)]
    assert len(recent.last) == 3
