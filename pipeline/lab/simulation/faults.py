"""What breaks, and when: nodes that lose power, sites that lose the way to the core.

Rules: times between faults are exponential, drawn for every node and site on its own, so that more nodes change nothing
of the others' faults.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import inf

import numpy as np

from pipeline.lab.simulation.door import Door
from pipeline.lab.simulation.events import Events
from pipeline.lab.simulation.flow import Flow
from pipeline.lab.simulation.scenario import Scenario
from pipeline.lab.simulation.server import Server
from pipeline.lab.simulation.sites import Sites
from pipeline.peers.status import Pool

_HOUR = 3600.0
_APART = 7919  # seeds of faults are apart from those of traffic


class Faults:
    """Breaks and mends a fleet; once it is `over` it only mends."""

    def __init__(self, sites: Sites, flow: Flow, events: Events) -> None:
        """Break nothing yet."""
        self._sites, self._flow, self._events = sites, flow, events
        self.nodes_lost = self.partitions = 0
        self.over = False
        self._cuts = Counter[int]()

    def plan(self, scenario: Scenario, seed: int) -> None:
        """Plan all faults of a run."""
        faults, until = scenario.faults, scenario.hours * _HOUR
        if faults.node_hours is not None:
            for site, nodes in enumerate(self._sites.nodes):
                for number, node in enumerate(nodes):
                    rng = np.random.default_rng([_APART, seed, site, number])
                    for at in _times(rng, faults.node_hours * _HOUR, faults.repair_s, until):
                        self._events.at(at, self._lose, node)
                        self._events.at(at + faults.repair_s, self._repair, node)
        if faults.partition_hours is not None:
            for door in self._sites.doors:
                rng = np.random.default_rng([_APART, seed, door.site])
                for at in _times(rng, faults.partition_hours * _HOUR, faults.partition_s, until):
                    self._events.at(at, self._cut, (door, at + faults.partition_s))
        for start, end in faults.core_down:
            for door in self._sites.doors:
                self._events.at(start, self._cut, (door, end))

    def _lose(self, node: Server) -> None:
        if self.over or not node.up:
            return
        self.nodes_lost += 1
        for trip in node.switch_off(self._events.now):
            self._flow.lost(trip, node)

    def _repair(self, node: Server) -> None:
        if not node.up:
            node.switch_on(self._events.now)

    def _cut(self, what: tuple[Door, float]) -> None:
        """Part a site from its core until a time; what was under way is lost."""
        door, end = what
        if self.over:
            return
        self.partitions += 1
        self._cuts[door.site] += 1
        self._events.at(end, self._heal, door)
        now = self._events.now
        for seen in door.seen.values():
            server = seen.server
            if server.pool is Pool.NVLINK and seen.cut_at > now:
                seen.cut(now)
                for trip in [t for t in server.trips if t.door is door]:
                    server.drop(trip, now)
                    self._flow.lost(trip, server)

    def _heal(self, door: Door) -> None:
        """Join a site with its core again, unless another cut lasts."""
        self._cuts[door.site] -= 1
        if self._cuts[door.site]:
            return
        for seen in door.seen.values():
            if seen.cut_at != inf:
                seen.cut(inf)


def _times(rng: np.random.Generator, mean_s: float, apart_s: float, until: float) -> Iterator[float]:
    at = float(rng.exponential(mean_s))
    while at < until:
        yield at
        at += apart_s + float(rng.exponential(mean_s))
