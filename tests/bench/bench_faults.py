"""What clients notice of faults: requests come in at a steady rate, a fault begins at a third of the time and ends at two.

Run: python -m tests.bench.bench_faults [--seconds 120] [--rate 50] [--large 0.02] [fault ...]

A request fails where it has no complete answer: a status of 400 or more, a stream without its end, a broken connection.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.catalog.golden import parse_golden
from tests.bench import open_loop
from tests.bench.faults import FAULTS, Fault
from tests.bench.open_loop import Outcome
from tests.bench.rig import Models, Rig
from tests.support.projects import DEMO

WARM_S = 5.0
COUNTED = {
    "retried": 'gateway_route_total{pool="%s",reason="retry"}',
    "hedged": "gateway_hedges_total",
    "continued": 'gateway_continuations_total{outcome="%s"}',
}


async def run(fault: Fault, rig: Rig, options: argparse.Namespace) -> str:
    """Put a rig under load, let a fault happen, and return the report's row."""
    golden = parse_golden((DEMO / "golden.jsonl").read_text(), "golden.jsonl")
    question = open_loop.questions(golden, options.large)
    await rig.open()
    await open_loop.load(rig.url, question, options.rate / 2, WARM_S)
    before, memory = await rig.metrics(), rig.memory_mib()
    third = options.seconds / 3
    happening = asyncio.create_task(_happen(fault, rig, third))
    outcomes = await open_loop.load(rig.url, question, options.rate, options.seconds)
    await happening
    after = await rig.metrics()
    _tell(outcomes)
    changed = {name: value - before.get(name, 0.0) for name, value in after.items()}
    return _row(fault.name, outcomes, changed, third, (memory, rig.memory_mib()))


async def _happen(fault: Fault, rig: Rig, third: float) -> None:
    await asyncio.sleep(third)
    await fault.begin(rig)
    await asyncio.sleep(third)
    await fault.end(rig)


def _tell(outcomes: Sequence[Outcome]) -> None:
    """Print every failure, and how many answers were not the golden ones."""
    for outcome in outcomes:
        if outcome.failed:
            kind = "streamed" if outcome.stream else "whole"
            print(f"  at {outcome.at:6.2f} s, {kind}, after {outcome.total_ms:.0f} ms: {outcome.failed}", flush=True)


def _row(
    name: str, outcomes: Sequence[Outcome], changed: dict[str, float], third: float, memory: tuple[float, float]
) -> str:
    def counted(prefix: str, *parts: str) -> int:
        return round(sum(v for n, v in changed.items() if n.startswith(prefix) and all(p in n for p in parts)))

    phases = [[o for o in outcomes if i * third <= o.at < (i + 1) * third] for i in range(3)]
    times = [_quantiles([o.first_ms for o in phase if o.first_ms is not None]) for phase in phases]
    figures = [
        len(outcomes),
        sum(o.failed is not None for o in outcomes),
        sum(o.degraded for o in outcomes),
        sum(o.right is False for o in outcomes),
        counted("gateway_route_total{", 'reason="retry"'),
        counted("gateway_hedges_total"),
        f"{counted('gateway_continuations_total{', 'same')}+{counted('gateway_continuations_total{', 'other')}",
    ]
    return f"| {name} | {' | '.join(map(str, figures))} | {' | '.join(times)} | {memory[0]:.0f} → {memory[1]:.0f} |"


def _quantiles(found: Sequence[float]) -> str:
    ordered = sorted(found)
    return f"{ordered[len(ordered) // 2]:.0f} / {ordered[len(ordered) * 99 // 100]:.0f}" if ordered else "-"


def main() -> None:
    """Make the models once; each fault then gets a rig of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fault", nargs="*", help=f"by number, from 1: {', '.join(f.name for f in FAULTS)}")
    parser.add_argument("--seconds", type=float, default=120.0, help="of load for each fault (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second (default: %(default)s)")
    parser.add_argument("--large", type=float, default=0.02, help="share for the large tier (default: %(default)s)")
    options = parser.parse_args()
    chosen = [FAULTS[int(number) - 1] for number in options.fault] or FAULTS
    with tempfile.TemporaryDirectory() as folder:
        models, rows = Models.make(Path(folder)), []
        for fault in chosen:
            rig = Rig(Path(folder) / fault.name.replace(" ", "-"), models, tls=fault.tls, delays=fault.delays)
            try:
                rows.append(asyncio.run(run(fault, rig, options)))
            finally:
                rig.close()
            print(f"{rows[-1]} load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
