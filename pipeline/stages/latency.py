"""Latency figures: durations that an engine measured, through pytest-benchmark.

Rules: the engine's own durations are replayed as the benchmark's clock, so that whichever machine decoded, the JSON
kept is pytest-benchmark's own and `pytest-benchmark compare` reads it; percentiles come from that JSON's data.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.manifest.evidence import Percentiles
from pipeline.ports import files, process

_REPLAY = Path(__file__).with_name("latency_replay.py")


def benchmark(durations_ns: Mapping[str, Sequence[int]], out: Path) -> dict[str, Percentiles]:
    """Write pytest-benchmark's JSON of each named row of durations to `out` and return their percentiles in ms.

    Raises:
        ToolError: pytest-benchmark failed; its last lines are in the message.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "durations.json").write_text(json.dumps({name: list(row) for name, row in durations_ns.items()}))
        process.run(
            [
                sys.executable, "-m", "pytest", "-q", "-c", folder / "pytest.ini", "--rootdir", folder,
                "-p", "no:cacheprovider", "--benchmark-only", "--benchmark-disable-gc", "--benchmark-save-data",
                f"--benchmark-json={folder / 'benchmark.json'}", _REPLAY,
            ],
            env={"EDGE_RELEASE_DURATIONS": str(folder / "durations.json")},
            hint="pip install 'edge-release[build]'",
        )  # fmt: skip
        data = (folder / "benchmark.json").read_bytes()
    files.write(out, data)
    return {b["params"]["name"]: _percentiles(b["stats"]["data"]) for b in json.loads(data)["benchmarks"]}


def _percentiles(seconds: Sequence[float]) -> Percentiles:
    p50, p95 = np.quantile(np.asarray(seconds) * 1e3, [0.5, 0.95])
    return Percentiles(p50=round(float(p50), 4), p95=round(float(p95), 4))
