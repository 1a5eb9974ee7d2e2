"""An NVLink pool: replicas that start cold, drain before they go, and cost from the moment they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.lab.simulation.events import Events
from pipeline.lab.simulation.server import Server
from pipeline.peers.status import State

_DRAIN_S = 1.0  # between two looks whether a server that drains is idle


class Replicas:
    """`wanted` of the servers, the first ones, are on or on their way; `moves` are (time, wanted before, after)."""

    def __init__(self, name: str, servers: Sequence[Server], events: Events, cold_start_s: float) -> None:
        """Begin with none."""
        self.name, self.servers, self._events, self._cold_s = name, servers, events, cold_start_s
        self.wanted = 0
        self.moves: list[tuple[float, int, int]] = []
        self.cold_starts = 0

    @property
    def ready(self) -> int:
        """Replicas that take requests."""
        return sum(s.up and s.state is State.READY for s in self.servers)

    def begin(self, count: int) -> None:
        """Have some ready at the start."""
        self.wanted = count
        for server in self.servers[:count]:
            server.paid_from(0.0)
            server.switch_on(0.0)

    def scale(self, count: int) -> None:
        """Ask for a number of replicas."""
        now, count = self._events.now, min(max(count, 0), len(self.servers))
        if count == self.wanted:
            return
        self.moves.append((now, self.wanted, count))
        for server in self.servers[self.wanted : count]:
            self._start(server, now)
        for server in self.servers[count : self.wanted]:
            self._drain(server)
        self.wanted = count

    def _start(self, server: Server, now: float) -> None:
        if server.up:  # it was draining
            server.turn(State.READY)
            return
        if server.on_at is None:
            self.cold_starts += 1
            server.paid_from(now)
            self._events.at(now + self._cold_s, self._started, server)

    def _started(self, server: Server) -> None:
        if server.number < self.wanted:
            server.switch_on(self._events.now)
        else:
            server.paid_to(self._events.now)

    def _drain(self, server: Server) -> None:
        """Take no more, and go once idle."""
        if not server.up:
            return  # it is still starting, and sees on its own that it is not wanted
        server.turn(State.DRAINING)
        self._drained(server)

    def _drained(self, server: Server) -> None:
        if server.state is not State.DRAINING:
            return
        if server.trips:
            self._events.at(self._events.now + _DRAIN_S, self._drained, server)
            return
        now = self._events.now
        server.switch_off(now)
        server.paid_to(now)
