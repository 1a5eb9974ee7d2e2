"""The fleet of a scenario: servers, pools of replicas, and a gateway for each site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.catalog.names import Variant
from pipeline.lab.simulation.door import Door, Seen
from pipeline.lab.simulation.events import Events
from pipeline.lab.simulation.pools import Replicas
from pipeline.lab.simulation.scenario import Core, Scenario
from pipeline.lab.simulation.server import Server
from pipeline.lab.simulation.trip import Trip
from pipeline.peers.status import Pool
from pipeline.serving.snapshot import Offered

Ended = Callable[[Trip], object]
_GOLDEN = 0.6180339887  # its multiples spread evenly: gateways look at their servers at different moments


@dataclass(frozen=True, slots=True)
class Sites:
    """All of it."""

    doors: list[Door]
    nodes: list[list[Server]]
    pools: list[Replicas]

    @property
    def servers(self) -> list[Server]:
        """Nodes and replicas."""
        return [s for own in self.nodes for s in own] + [s for p in self.pools for s in p.servers]


def build(scenario: Scenario, events: Events, ended: Ended) -> Sites:
    """Return the fleet, nodes and first replicas ready."""
    offered = {name: _offered(name, scenario) for name in _variants(scenario)}
    release = {(o.name, o.digest): o for o in offered.values()}
    pools = (
        [_pool(scenario, scenario.core, n, events, ended) for n in range(scenario.core.pools)] if scenario.core else []
    )
    edge, doors, nodes = scenario.edge, list[Door](), list[list[Server]]()
    figures = scenario.speeds(edge.figures)
    for site in range(edge.sites):
        phase = site * _GOLDEN % 1.0 * scenario.poll_s
        own = [
            Server(
                f"s{site}-pi-{n}", n, figures, events, pool=Pool.EDGE, poll_s=scenario.poll_s, phase=phase, ended=ended
            )
            for n in range(edge.nodes)
        ]
        for server in own:
            server.paid_from(0.0)
            server.switch_on(0.0)
        seen = [Seen(s, offered[edge.variant], edge.round_trip_ms) for s in own]
        pool = site % len(pools) if pools else 0
        if scenario.core:
            seen += [Seen(s, offered[scenario.core.variant], scenario.core.round_trip_ms) for s in pools[pool].servers]
        door = Door(
            f"gateway-{site}", site, seen, offered=release, policy=scenario.first_policy, poll_s=scenario.poll_s,
            phase=phase, pool=pool,
        )  # fmt: skip
        doors.append(door)
        nodes.append(own)
    return Sites(doors, nodes, pools)


def _pool(scenario: Scenario, core: Core, number: int, events: Events, ended: Ended) -> Replicas:
    figures = scenario.speeds(core.figures)
    servers = [
        Server(
            f"core-{number}-{n}", n, figures, events, pool=Pool.NVLINK, poll_s=scenario.poll_s, phase=0.0, ended=ended
        )
        for n in range(core.most)
    ]
    found = Replicas(f"core-{number}", servers, events, core.cold_start_s)
    found.begin(core.replicas)
    return found


def _variants(scenario: Scenario) -> list[str]:
    return [scenario.edge.variant, *([scenario.core.variant] if scenario.core else [])]


def _offered(name: str, scenario: Scenario) -> Offered:
    core = scenario.core is not None and name == scenario.core.variant
    figures = scenario.speeds(scenario.core.figures if core and scenario.core else scenario.edge.figures)
    return Offered(name, Variant.parse(name).tier, name, figures.context)
