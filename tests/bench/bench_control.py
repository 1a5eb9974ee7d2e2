"""What a decision costs: processor time of `decide` over 10,000 nodes, with gateways, large servers and pods beside them.

Run `make bench-control`. Processor time, not wall time; the median and the largest of all rounds. A round in two has
work to do: modes turn, pools are resized, pods are asked to go.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from dataclasses import replace

from pipeline.control.decide import decide
from pipeline.control.memory import Memory, Mode
from pipeline.control.settings import PoolSettings, Settings
from pipeline.control.state import Gateway, Host, Node, Pod, Pool, Server, State
from tests.support.controlled import done

NODES, GATEWAYS, SERVERS, HOSTS, PODS = 10_000, 100, 64, 32, 500
ROUNDS, STEP_S, SEED = 60, 15.0, 1
SETTINGS = Settings(
    pools=[PoolSettings(name=f"pool-{i}", variants=[f"v{i}"], most=32, missed=not i, gpus=4, rank=i) for i in range(4)]
)


def fleet(draw: random.Random, strained: bool) -> State:
    """Return a fleet of full size."""
    sites = [f"site-{i}" for i in range(GATEWAYS)]
    cpu = 0.9 if strained else 0.3
    return State(
        at=0.0,
        gateways=tuple(
            Gateway(
                f"gateway-{site}",
                site,
                SETTINGS.policy_of(Mode.NORMAL, 1),
                {f"v{i}": draw.uniform(0, 2) for i in range(4)},
                0.0,
                60.0,
                200.0,
                4,
                draw.uniform(5, 200),
                {"edge_p95": draw.uniform(0, 4), "global_p95": 1.0},
            )
            for site in sites
        ),
        nodes=tuple(
            Node(
                f"pi-{i}", sites[i % GATEWAYS], ready=True, cpu=draw.gauss(cpu, 0.1), queue_wait_ms=draw.uniform(0, 150)
            )
            for i in range(NODES)
        ),
        servers=tuple(
            Server(f"gpu-{i}", f"pool-{i % 4}", True, 4, draw.randrange(9), draw.uniform(0, 900), 0.5, True)
            for i in range(SERVERS)
        ),
        pools=tuple(Pool(f"pool-{i}", 16, 16, int(strained)) for i in range(4)),
        hosts=tuple(Host(f"nv-{i}", 8, draw.randrange(4), nvlink=True) for i in range(HOSTS)),
        pods=tuple(
            Pod("jobs", f"job-{i}", f"uid-{i}", f"nv-{i % HOSTS}", -1, 1, True, False, (f"jobs/{i % 9}",))
            for i in range(PODS)
        ),
        budgets={f"jobs/{i}": 2 for i in range(9)},
    )


def main() -> None:
    """Print what a round costs."""
    draw = random.Random(SEED)
    calm, strained = fleet(draw, strained=False), fleet(draw, strained=True)
    memory, now, cost, actions_of, told = Memory(), 0.0, [], [], calm
    for number in range(ROUNDS):
        what = strained if number // 15 % 2 else calm
        if number % 15:  # what was told stays in force until the fleet changes
            what = replace(what, gateways=told.gateways, pools=told.pools)
        gc.collect()
        began = time.process_time()
        actions, memory = decide(what, memory, SETTINGS, now)
        cost.append(time.process_time() - began)
        actions_of.append(len(actions))
        told, now = done(what, actions), now + STEP_S
    print(f"{NODES} nodes, {GATEWAYS} gateways, {SERVERS} large servers, {PODS} pods; {ROUNDS} rounds")
    print(f"CPU ms a round: median {statistics.median(cost) * 1e3:.1f}, largest {max(cost) * 1e3:.1f}")
    print(f"actions: {sum(actions_of)}, most in a round {max(actions_of)}")


if __name__ == "__main__":
    main()
