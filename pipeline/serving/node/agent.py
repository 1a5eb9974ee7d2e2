"""The node at work: what happens is noted, what is decided is done.

Rules: nothing is decided here. Each action runs as a task of its own and ends in an event. Whatever the registry does,
the node goes on with what it has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import aiohttp

from pipeline.errors import PipelineError, TrustError
from pipeline.peers.status import ServerStatus
from pipeline.ports.beside import Program
from pipeline.ports.nvml import Use
from pipeline.serving.node import events, report
from pipeline.serving.node.backend import Backend
from pipeline.serving.node.decide import Action, Keep, Kill, Poll, Probe, Retire, Start, Stop, begun, decide, ended
from pipeline.serving.node.events import Event, happened
from pipeline.serving.node.proxy import Proxy, Target
from pipeline.serving.node.releases import Held, Releases
from pipeline.serving.node.sensors import Sensors
from pipeline.serving.node.servers import Running, Servers
from pipeline.serving.node.state import NodeState, Phase, Pin, Policy
from pipeline.serving.node.work import Work, threaded

TICK_S = 0.2
LOOK_S = 2.0  # between two looks at the machine and at the ready server's health
SILENT = 5  # looks in a row without an answer after which a server is taken for dead


class Agent:
    """A node's state, its servers, and its proxy."""

    def __init__(
        self,
        name: str,
        *,
        releases: Releases,
        backend: Backend,
        session: aiohttp.ClientSession,
        policy: Policy,
        say: Callable[[str], None],
        sensors: Sensors | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Prepare a node; `run` makes it work.

        Args:
            backend: how a release is served.
            say: told of what happens, a line each.
        """
        self.name, self.state, self.engine_queue = name, NodeState(), None
        self.proxy = Proxy(session, self._target)
        self._releases, self._backend, self._policy = releases, backend, policy
        self._say, self._clock, self._wall, self._sensors = say, clock, wall, sensors or Sensors()
        self._work = Work()
        self._servers = Servers(backend, session, self._work, say)
        self._held: dict[str, Held] = {}

    engine_queue: tuple[int, int] | None

    async def run(self) -> None:
        """Work until `end` was called and all servers ended."""
        self._work.spawn(self._look())
        await self._find()
        while not ended(self.state):
            self._step()
            for event in await self._work.events(TICK_S):
                self._note(event)
        await self._work.end()

    def end(self) -> None:
        """Ask the node to end: no new requests, those under way are finished."""
        self._work.post(events.EndAsked())

    def status(self) -> ServerStatus:
        """Return what the node says of itself."""
        running = self._ready()
        serving = None
        if running is not None and self.state.ready is not None:
            generating = self.proxy.generating[self.state.ready.number]
            serving = report.Serving(running.held, running.sizing, generating)
        return report.status(self.name, self._backend.pool, self.state, serving, self._sensors.reading)

    @property
    def gpus(self) -> tuple[Use, ...]:
        """How much of each GPU is in use, as the last look saw it."""
        return self._sensors.reading.gpus

    async def engine_figures(self) -> str:
        """Return the ready server's own figures, where they are a node's to tell."""
        running = self._ready()
        if running is None or not self._backend.dialect.told:
            return ""
        return await self._servers.asked(running.address).figures()

    def _ready(self) -> Running | None:
        ready = self.state.ready
        return self._servers.get(ready.number) if ready else None

    def _target(self) -> Target | None:
        running, ready = self._ready(), self.state.ready
        if running is None or ready is None:
            return None
        return Target(ready.number, running.address, running.held.model_sha256)

    def _step(self) -> None:
        self.state = self.state.loaded_with(self.proxy.in_flight)
        now = self._clock()
        for action in decide(self.state, now, self._policy):
            self.state = begun(self.state, action, now, self._policy)
            self._do(action)

    def _note(self, event: Event) -> None:
        before = report.standing(self.state)
        self.state = happened(self.state, event, self._clock(), self._policy)
        after = report.standing(self.state)
        if after != before:
            release = self.state.ready.pin.version if self.state.ready else None
            served = f", serving release {release}" if release else ""
            self._say(f"{after[0]}{served}" + (f" ({after[1]})" if after[1] else ""))

    def _do(self, action: Action) -> None:
        match action:
            case Poll():
                self._work.spawn(self._poll())
            case Start(number, pin):
                self._work.spawn(self._start(number, pin))
            case Probe(number):
                self._work.spawn(self._servers.probe(number))
            case Stop(number, _):
                self._servers.signal(number, Program.ask_to_end)
            case Kill(number):
                self._servers.signal(number, Program.kill)
            case Keep(pin):
                self._work.spawn(self._keep(pin))
            case Retire():
                pass  # the state says it: the proxy gives it no further requests

    async def _find(self) -> None:
        """Look what the disk leads to, before anything else."""
        try:
            held = await self._work.on_disk(self._releases.kept)
        except PipelineError as e:
            self._note(events.Found(None, f"the release on the disk cannot be used: {e.message}"))
            return
        if held is not None:
            self._remember(held)
        self._note(events.Found(held.pin if held else None))

    async def _poll(self) -> None:
        try:
            held = await self._work.on_disk(self._releases.newest)
            sizing = self._backend.size(held)
        except PipelineError as e:
            self._work.post(events.NotFollowed(e.message, refused=isinstance(e, TrustError)))
        except Exception as e:
            # An outermost loop: no registry's answer may end a node that serves.
            self._work.post(events.NotFollowed(f"the channel cannot be followed: {e!r}"))
        else:
            self._remember(held)
            self._policy = replace(self._policy, beside=sizing.beside)
            self._work.post(events.Offered(held.pin, held.fetched, held.reused))

    async def _keep(self, pin: Pin) -> None:
        try:
            await self._work.on_disk(lambda: self._releases.keep(self._held[pin.digest]))
        except PipelineError as e:
            self._work.post(events.NotStored(e.message))
        else:
            self._work.post(events.Stored(pin))

    async def _start(self, number: int, pin: Pin) -> None:
        try:
            held = await self._work.on_disk(lambda: self._releases.again(self._held[pin.digest]))
            await self._servers.start(number, held, lambda: self._is(number, Phase.LOADING))
        except PipelineError as e:
            self._work.post(events.Exited(number, e.message))

    async def _look(self) -> None:
        """Look at the machine and at the ready server again and again; a server that keeps silent is ended."""
        silent = 0
        while True:
            await threaded(self._sensors.look)
            self._check_expiry()
            running = self._ready()
            if running is not None:
                asked = self._servers.asked(running.address)
                silent = 0 if await asked.healthy() else silent + 1
                self.engine_queue = await asked.queue() if not silent else None
                if silent >= SILENT:
                    self._say(f"{self._backend.dialect.name} does not answer and is ended")
                    running.program.kill()
                    silent = 0
            await asyncio.sleep(LOOK_S)

    def _check_expiry(self) -> None:
        for child in self.state.children:
            held = self._held.get(child.pin.digest)
            if held is not None and self._wall() >= held.accepted.manifest.expires:
                self._work.post(
                    events.Expired(child.pin, f"it expired on {held.accepted.manifest.expires:%Y-%m-%d %H:%M} UTC")
                )

    def _is(self, number: int, phase: Phase) -> bool:
        child = self.state.child(number)
        return child is not None and child.phase is phase

    def _remember(self, held: Held) -> None:
        pins = (self.state.kept, self.state.offered, *(child.pin for child in self.state.children))
        wanted = {pin.digest for pin in pins if pin}
        self._held = {d: h for d, h in self._held.items() if d in wanted} | {held.pin.digest: held}
