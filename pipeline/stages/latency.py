"""Latency figures: durations that an engine measured, through pytest-benchmark.

Rules: the engine's own durations are replayed as the benchmark's clock, so that whichever machine decoded, the JSON
kept is pytest-benchmark's own and `pytest-benchmark compare` reads it. A board with the base install alone keeps the
bare durations instead.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import StageError
from pipeline.manifest.encoding import canonical
from pipeline.manifest.evidence import Percentiles, quantile
from pipeline.ports import files, process

_REPLAY = Path(__file__).with_name("latency_replay.py")


def benchmark(durations_ns: Mapping[str, Sequence[int]], out: Path) -> dict[str, Percentiles]:
    """Write pytest-benchmark's JSON of each named row of durations to `out` and return their percentiles in ms.

    Raises:
        StageError: there is a row without durations.
        ToolError: pytest-benchmark failed; its last lines are in the message.
    """
    if empty := sorted(name for name, row in durations_ns.items() if not row):
        raise StageError(f"nothing was decoded to take {empty[0]} from", hint="give golden prompts longer answers")
    known = find_spec("pytest_benchmark") is not None
    files.write(out, _replayed(durations_ns) if known else canonical({"durations_ns": durations_ns}) + b"\n")
    return {name: _percentiles(row) for name, row in durations_ns.items()}


def _replayed(durations_ns: Mapping[str, Sequence[int]]) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "durations.json").write_text(json.dumps({name: list(row) for name, row in durations_ns.items()}))
        process.run(
            [
                sys.executable, "-m", "pytest", "-q", "-c", folder / "pytest.ini", "--rootdir", folder,
                "-p", "no:cacheprovider", "-p", "pytest_benchmark.plugin",
                "--benchmark-only", "--benchmark-disable-gc", "--benchmark-save-data",
                f"--benchmark-json={folder / 'benchmark.json'}", _REPLAY,
            ],
            env={
                "EDGE_RELEASE_DURATIONS": str(folder / "durations.json"),
                # Of plugins this one alone: others would start for nothing, and it measures nothing in xdist's workers.
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "PYTEST_XDIST_WORKER": "",
                "PYTEST_ADDOPTS": "",
            },
            hint="pip install 'edge-release[build]'",
        )  # fmt: skip
        return (folder / "benchmark.json").read_bytes()


def _percentiles(durations_ns: Sequence[int]) -> Percentiles:
    p50, p95 = (round(quantile(durations_ns, share) / 1e6, 4) for share in (0.5, 0.95))
    return Percentiles(p50=p50, p95=p95)
