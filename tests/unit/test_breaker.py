"""Circuit breakers: when they open, probe and close."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.serving.gateway.breaker import Breaker, Circuit


def _failed(times: int, now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(times):
        breaker = breaker.failed(now)
    return breaker


def test_three_failures_in_a_row_open_it() -> None:
    """Two do not, and a success in between starts the count anew."""
    assert _failed(2).circuit(0) is Circuit.CLOSED
    assert _failed(3).circuit(0) is Circuit.OPEN
    assert _failed(2).succeeded().failed(0).circuit(0) is Circuit.CLOSED


def test_one_probe_at_a_time() -> None:
    """After the pause one request is let through; its success closes the circuit, its failure doubles the pause."""
    half = _failed(3)
    assert half.circuit(1.0) is Circuit.HALF_OPEN
    probing = half.began(1.0)
    assert probing.circuit(1.0) is Circuit.OPEN
    assert probing.succeeded().circuit(1.0) is Circuit.CLOSED
    assert probing.released().circuit(1.0) is Circuit.HALF_OPEN
    again = probing.failed(1.0)
    assert (again.circuit(2.9), again.circuit(3.0)) == (Circuit.OPEN, Circuit.HALF_OPEN)


def test_one_crash_costs_one_pause() -> None:
    """Requests that began before the circuit opened fail one after another; only a failed probe doubles the pause."""
    crashed = _failed(8)
    assert (crashed.until, crashed.failures) == (1.0, 3)
    assert crashed.failed(1.5).circuit(1.5) is Circuit.HALF_OPEN
    assert crashed.began(1.5).failed(1.5).until == 3.5


@given(st.integers(0, 60), st.floats(0, 1e9))
@example(2000, 0.0)
def test_no_pause_exceeds_the_longest(probes: int, now: float) -> None:
    """However many probes failed, an endpoint is probed again in half a minute."""
    breaker = _failed(3, now)
    for _ in range(probes):
        assert breaker.until is not None
        now = breaker.until
        breaker = breaker.began(now).failed(now)
    assert breaker.circuit(now + 30.1) is Circuit.HALF_OPEN
