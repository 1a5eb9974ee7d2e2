"""The controller in simulation: what Prometheus would tell it, the `decide` of production, and its actions carried out.

Rules: a pool and the sites before it have a controller of their own, which looks every `tick_s`; rates are of the last
minute, burn rates of the last five; what a site cut off from its core would not tell, it is not told. Actions take
effect at once, replicas after their cold start.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.control.actions import Evict, SetPolicy
from pipeline.control.decide import decide
from pipeline.control.demand import loads
from pipeline.control.history import History, Kept
from pipeline.control.memory import Memory
from pipeline.control.settings import Settings
from pipeline.control.state import Gateway, Node, Pool, State
from pipeline.control.state import Server as Large
from pipeline.lab.simulation.door import Door, Tally
from pipeline.lab.simulation.events import Events
from pipeline.lab.simulation.pools import Replicas
from pipeline.lab.simulation.scenario import Core, Scenario
from pipeline.lab.simulation.server import Server
from pipeline.lab.simulation.sites import Sites
from pipeline.peers.slo import OBJECTIVES
from pipeline.peers.status import Pool as PoolName
from pipeline.peers.status import State as ServerState

_RATE_S, _BURN_S = 60.0, 300.0
_BURNS = {o.name: o for o in OBJECTIVES}
_FIELDS = Tally.__slots__
_PLACE = {name: place for place, name in enumerate(_FIELDS)}


class Controller:
    """One of them, with what it did: `pushed` are (time, gateway), `reasons` counts actions by kind and reason.

    It ends at `until`, in seconds.
    """

    def __init__(
        self, scenario: Scenario, settings: Settings, events: Events, *, pool: Replicas, doors: Sequence[Door],
        nodes: Sequence[Sequence[Server]], kept: Kept | None,
    ) -> None:  # fmt: skip
        """Look at nothing yet."""
        assert scenario.core is not None
        self._core: Core = scenario.core
        self._settings, self._pool, self._doors, self._nodes = settings, pool, doors, nodes
        self._events, self._history = events, History(settings)
        if kept is not None:
            self._history.restore(kept)
        self._name = settings.pools[0].name
        self._tick_s, self.until = scenario.tick_s, scenario.hours * 3600
        self._began = scenario.start.timestamp()
        self._places = {door.name: door for door in doors}
        self._ring: deque[NDArray[np.int64]] = deque(maxlen=max(round(_BURN_S / self._tick_s), 1))
        self._memory = Memory()
        self.pushed: list[tuple[float, str]] = []
        self.reasons: Counter[str] = Counter()
        events.at(self._tick_s, self._tick)

    def _tick(self, _: Any) -> None:
        now = self._events.now
        if now >= self.until:
            return
        if now + self._tick_s < self.until:
            self._events.at(now + self._tick_s, self._tick)
        state = self._state(now)
        actions, self._memory = decide(state, self._memory, self._settings, state.at)
        for action in actions:
            self.reasons[f"{action.kind} {action.reason}"] += 1
            if isinstance(action, SetPolicy):
                self._places[action.gateway].policy = action.policy
                self.pushed.append((now, action.gateway))
            elif not isinstance(action, Evict):
                self._pool.scale(action.replicas)

    def _state(self, now: float) -> State:
        at = self._began + now
        gateways = tuple(self._gateways(now))
        large = tuple(self._large())
        load = loads(gateways, large, self._settings.pools)[self._name]
        self._history.add(at, {self._name: load.qps})
        return State(
            at, gateways, tuple(self._edge(now)), large,
            (Pool(self._name, self._pool.wanted, self._pool.ready, 0),), expected=self._history.expected(at),
        )  # fmt: skip

    def _gateways(self, now: float) -> Iterable[Gateway]:
        rows = [[getattr(d.tally, name) for name in _FIELDS] for d in self._doors]
        self._ring.append(np.asarray(rows, np.int64))
        for door in self._doors:
            door.tally = Tally()
        recent = max(round(_RATE_S / self._tick_s), 1)
        kept = np.stack(self._ring)
        rates = kept[-recent:].sum(axis=0) / (min(recent, len(kept)) * self._tick_s)
        totals = kept.sum(axis=0)
        core, missed = rates[:, _PLACE["core"]].tolist(), rates[:, _PLACE["missed"]].tolist()
        for door, qps, meant, row in zip(self._doors, core, missed, totals.tolist(), strict=True):
            usable = _usable(door, now)
            yield Gateway(
                door.name, door.name, door.policy, {self._core.variant: qps}, meant, core_usable=usable,
                core_round_trip_ms=self._core.round_trip_ms if usable else None, burn=self._burn(row),
            )  # fmt: skip

    def _burn(self, row: Sequence[int]) -> dict[str, float]:
        """Return the burn rates of a gateway's last five minutes; an objective that little asked of is left out."""
        tally, least = Tally(*row), self._settings.looking.burn_requests
        counted = {
            "edge_p50": (tally.edge_slow, tally.edge),
            "edge_p95": (tally.edge_late, tally.edge),
            "global_p95": (tally.late, tally.edge + tally.core),
            "availability": (tally.faults, tally.edge + tally.core + tally.faults),
        }
        return {
            name: rate for name, (missed, asked) in counted.items()
            if asked >= least and (rate := _BURNS[name].burn(missed, asked)) is not None
        }  # fmt: skip

    def _edge(self, now: float) -> Iterable[Node]:
        for door, own in zip(self._doors, self._nodes, strict=True):
            for server in own:
                if not server.still:
                    server.look(now)
                seen = door.seen[server.name]
                wait = _wait_ms(server, seen.service_ms or door.policy.service_ms)
                yield Node(server.name, door.name, server.up, server.cpu if server.up else None, wait)

    def _large(self) -> Iterable[Large]:
        service_ms = self._settings.pools[0].service_s * 1000
        for server in self._pool.servers:
            if server.up:
                ready = server.state is ServerState.READY
                wait = _wait_ms(server, service_ms)
                yield Large(server.name, self._name, ready, server.busy, len(server.queue), wait, nvlink=True)


def attach(scenario: Scenario, sites: Sites, events: Events, kept: Sequence[Kept]) -> list[Controller]:
    """Give every pool its controller, where the scenario has any, and what it has seen before."""
    settings = scenario.controller
    if settings is None or scenario.core is None:
        return []
    found = []
    for number, pool in enumerate(sites.pools):
        own = [d.site for d in sites.doors if d.pool == number]
        doors, nodes = [sites.doors[i] for i in own], [sites.nodes[i] for i in own]
        seen = kept[number] if kept else None
        found.append(Controller(scenario, settings, events, pool=pool, doors=doors, nodes=nodes, kept=seen))
    return found


def _usable(door: Door, now: float) -> int:
    endpoints = door.snapshot(now).usable
    return sum(e.pool is PoolName.NVLINK for e, _ in endpoints)


def _wait_ms(server: Server, service_ms: float) -> float:
    slots = server.figures.slots
    ahead = server.busy + len(server.queue) - slots + 1
    return max(ahead, 0) * service_ms / slots
