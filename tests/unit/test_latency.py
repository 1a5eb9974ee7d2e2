"""Latency through pytest-benchmark, on durations an engine measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.stages.latency import benchmark


def test_percentiles_and_json_are_of_the_measured_durations(tmp_path: Path) -> None:
    """What pytest-benchmark keeps are the durations given, and the percentiles are theirs."""
    durations = {"first": [1_000_000, 2_000_000, 3_000_000], "next": [n * 100_000 for n in range(1, 101)]}
    found = benchmark(durations, tmp_path / "kept" / "benchmark.json")
    assert (found["first"].p50, found["first"].p95) == (2.0, 2.9)
    assert (found["next"].p50, found["next"].p95) == (5.05, 9.505)
    kept = {
        b["params"]["name"]: b["stats"]
        for b in json.loads((tmp_path / "kept/benchmark.json").read_text())["benchmarks"]
    }
    assert kept["first"]["data"] == pytest.approx([0.001, 0.002, 0.003])
    assert kept["next"]["rounds"] == 100
