"""What a simulation costs: processor time for a request, memory at 10,000 nodes; and what foresight gains.

Each fleet runs in a process of its own; processor time counts, Python's start and the fleet's making included. With
--foresight N, N seeds of four hours of the scenario `bursts` compare the controller with the same one that only reacts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

RATE = 0.25  # requests a second of each site of four nodes, at every hour
HOURS = 4.0  # of a comparison
FLEETS = {
    "4 nodes and a large server, nobody controls": ("lab", 1, 1, 1_000_000),
    "1,000 nodes, 10 controllers": ("retail", 250, 10, 1_000_000),
    "10,000 nodes, 100 controllers": ("retail", 2500, 100, 1_000_000),
}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--foresight", type=int, default=0, metavar="N")
    parser.add_argument("--fleet", choices=FLEETS)
    args = parser.parse_args()
    if args.fleet:
        print(json.dumps(_run(*FLEETS[args.fleet])))
        return
    print("| fleet | requests | us a request | requests a minute | peak memory |\n|---|---|---|---|---|")
    for fleet in FLEETS:
        command = [sys.executable, "-m", "tests.bench.bench_simulation", "--fleet", fleet]
        found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        micros = found["seconds"] / found["requests"] * 1e6
        minute = 60 / micros
        print(f"| {fleet} | {found['requests']:,} | {micros:.1f} | {minute:.2f} M | {found['mebibytes']:,.0f} MiB |")
    for seed in range(1, args.foresight + 1):
        _foresight(seed)


def _run(name: str, sites: int, pools: int, requests: int) -> dict[str, float]:
    import resource

    from pipeline.lab.simulation.run import run
    from pipeline.lab.simulation.scenario import load

    scenario = load(name)
    assert scenario.core is not None
    traffic = scenario.traffic.model_copy(
        update={"rate": scenario.traffic.rate if sites == 1 else RATE, "hourly": [1.0] * 24}
    )
    scenario = scenario.changed(
        hours=1000.0,
        traffic=traffic,
        edge=scenario.edge.model_copy(update={"sites": sites}),
        core=scenario.core.model_copy(update={"pools": pools}),
    )
    ran = run(scenario, 1, requests=requests)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "requests": ran.arrived, "seconds": used.ru_utime + used.ru_stime, "mebibytes": used.ru_maxrss / 1024,
        "simulated_s": ran.seconds,
    }  # fmt: skip


def _foresight(seed: int) -> None:
    from pipeline.lab.simulation.results import Results, results
    from pipeline.lab.simulation.run import run
    from pipeline.lab.simulation.scenario import load

    def missed(found: Results) -> int:
        return sum(o.missed for o in found.objectives if o.name in {"global_p95", "availability"})

    began, scenario = time.monotonic(), load("bursts").changed(hours=HOURS)
    reacts, foresees = (results(run(s, seed)) for s in (scenario.unforeseeing(), scenario))
    cost = foresees.cost.nvlink_usd / reacts.cost.nvlink_usd
    print(
        f"seed {seed}: {missed(reacts):,} late or unanswered without foresight, {missed(foresees):,} with: "
        f"{missed(reacts) / max(missed(foresees), 1):.1f}x fewer at {cost:.2f}x the cost of the pool; "
        f"flips of replicas {reacts.control.flips} and {foresees.control.flips}; at most "
        f"{foresees.control.policies_most_in_pause} policy in a pause ({time.monotonic() - began:.0f} s)",
        flush=True,
    )


if __name__ == "__main__":
    main()
