"""Run by pytest in a process of its own: one benchmark a row of durations, each round taking what was measured."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

DURATIONS: dict[str, list[int]] = json.loads(Path(os.environ["EDGE_RELEASE_DURATIONS"]).read_text())


def _clock(durations_ns: list[int]) -> Iterator[float]:
    now = 0
    for duration in durations_ns:
        yield now / 1e9
        now += duration
        yield now / 1e9
    yield from itertools.repeat(now / 1e9)


@pytest.mark.parametrize("name", DURATIONS)
def test_latency(name: str, benchmark: BenchmarkFixture) -> None:
    """The rounds last as long as the engine measured."""
    clock = _clock(DURATIONS[name])
    benchmark._timer = lambda: next(clock)
    benchmark.pedantic(lambda: None, rounds=len(DURATIONS[name]), iterations=1)  # type: ignore[no-untyped-call]
