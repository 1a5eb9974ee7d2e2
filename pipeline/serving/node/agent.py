"""The node at work: what happens is noted, what is decided is done.

Rules: nothing is decided here. Each action runs as a task of its own and ends in an event; work on the disk runs beside
the event loop, one piece at a time. Whatever the registry does, the node goes on with what it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import aiohttp

from pipeline.catalog.golden import parse_golden
from pipeline.errors import PipelineError, TrustError
from pipeline.ports.beside import Program
from pipeline.serving.node import engine, events, probe, report
from pipeline.serving.node.decide import Action, Keep, Kill, Poll, Probe, Retire, Start, Stop, begun, decide, ended
from pipeline.serving.node.engine import Address, Engine
from pipeline.serving.node.events import Event, happened
from pipeline.serving.node.proxy import Proxy, Target
from pipeline.serving.node.releases import Held, Releases
from pipeline.serving.node.sensors import Sensors
from pipeline.serving.node.sizing import Sizing
from pipeline.serving.node.state import NodeState, Phase, Pin, Policy
from pipeline.serving.status import ServerStatus

TICK_S = 0.2
LOOK_S = 2.0  # between two looks at the machine and at the ready server's health
SILENT = 5  # looks in a row without an answer after which a server is taken for dead

T = TypeVar("T")
Sizer = Callable[[Held], tuple[Sizing, bool]]


@dataclass(frozen=True)
class Running:
    """A server's program, where it listens, and what it serves; `templated`: its model has a chat template."""

    program: Program
    address: Address
    held: Held
    sizing: Sizing
    templated: bool


class Agent:
    """A node's state, its servers, and its proxy."""

    def __init__(
        self,
        name: str,
        *,
        releases: Releases,
        sizer: Sizer,
        session: aiohttp.ClientSession,
        policy: Policy,
        say: Callable[[str], None],
        sensors: Sensors | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Prepare a node; `run` makes it work.

        Args:
            sizer: how to start a release's server, and whether its model has a chat template; raises PipelineError.
            say: told of what happens, a line each.
        """
        self.name, self.state, self.engine_queue = name, NodeState(), None
        self.proxy = Proxy(session, self._target)
        self._releases, self._sizer, self._session, self._policy = releases, sizer, session, policy
        self._say, self._clock, self._wall, self._sensors = say, clock, wall, sensors or Sensors()
        self._servers: dict[int, Running] = {}
        self._held: dict[str, Held] = {}
        self._events: deque[Event] = deque()
        self._woken = asyncio.Event()
        self._broken: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._disk = asyncio.Lock()

    engine_queue: tuple[int, int] | None

    async def run(self) -> None:
        """Work until `end` was called and all servers ended."""
        self._spawn(self._look())
        await self._find()
        while not ended(self.state):
            self._step()
            await self._next_event()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def end(self) -> None:
        """Ask the node to end: no new requests, those under way are finished."""
        self._post(events.EndAsked())

    def status(self) -> ServerStatus:
        """Return what the node says of itself."""
        running = self._ready()
        serving = None
        if running is not None and self.state.ready is not None:
            generating = self.proxy.generating[self.state.ready.number]
            serving = report.Serving(running.held, running.sizing, generating)
        return report.status(self.name, self.state, serving, self._sensors.reading)

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

    async def _next_event(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), TICK_S)
        self._woken.clear()
        while self._events:
            self._note(self._events.popleft())
        if self._broken is not None:
            raise self._broken

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
                self._spawn(self._poll())
            case Start(number, pin):
                self._spawn(self._start(number, pin))
            case Probe(number):
                self._spawn(self._probe(number))
            case Stop(number, _):
                self._signal(number, Program.ask_to_end)
            case Kill(number):
                self._signal(number, Program.kill)
            case Keep(pin):
                self._spawn(self._keep(pin))
            case Retire():
                pass  # the state says it: the proxy gives it no further requests

    def _signal(self, number: int, how: Callable[[Program], None]) -> None:
        if number in self._servers:
            how(self._servers[number].program)

    async def _find(self) -> None:
        """Look what the disk leads to, before anything else."""
        try:
            held = await self._beside(self._releases.kept)
        except PipelineError as e:
            self._note(events.Found(None, f"the release on the disk cannot be used: {e.message}"))
            return
        if held is not None:
            self._remember(held)
        self._note(events.Found(held.pin if held else None))

    async def _poll(self) -> None:
        try:
            held = await self._beside(self._releases.newest)
            sizing, _ = self._sizer(held)
        except PipelineError as e:
            self._post(events.NotFollowed(e.message, refused=isinstance(e, TrustError)))
        except Exception as e:
            # An outermost loop: no registry's answer may end a node that serves.
            self._post(events.NotFollowed(f"the channel cannot be followed: {e!r}"))
        else:
            self._remember(held)
            self._policy = replace(self._policy, beside=sizing.beside)
            self._post(events.Offered(held.pin))

    async def _keep(self, pin: Pin) -> None:
        try:
            await self._beside(lambda: self._releases.keep(self._held[pin.digest]))
        except PipelineError as e:
            self._post(events.NotStored(e.message))
        else:
            self._post(events.Stored(pin))

    async def _start(self, number: int, pin: Pin) -> None:
        try:
            held = await self._beside(lambda: self._releases.again(self._held[pin.digest]))
            sizing, templated = self._sizer(held)
            if not self._is(number, Phase.LOADING):
                self._post(events.Exited(number, "it is not wanted any more"))
                return
            program, address = await engine.launch(held.server, held.weights, held.entry.name, sizing)
        except PipelineError as e:
            self._post(events.Exited(number, e.message))
            return
        self._servers[number] = Running(program, address, held, sizing, templated)
        self._say(f"release {pin.version}: llama-server {program.pid} with {sizing.slots} slots of {sizing.context}")
        self._spawn(self._wait(number, program))
        if not self._is(number, Phase.LOADING):
            program.ask_to_end()
        await engine.until_healthy(Engine(self._session, address), program)
        if program.running:
            self._post(events.Loaded(number))

    async def _wait(self, number: int, program: Program) -> None:
        reason = await program.wait()
        self._servers.pop(number, None)
        self._say(reason)
        self._post(events.Exited(number, reason))

    async def _probe(self, number: int) -> None:
        running = self._servers.get(number)
        if running is None:
            return
        held = running.held
        try:
            prompts = parse_golden(held.golden.read_text(encoding="utf-8"), held.golden.name)
            wrong = await probe.check(
                Engine(self._session, running.address), probe.questions(prompts, held.entry),
                templated=running.templated, largest=probe.margin(held.entry),
            )  # fmt: skip
        except PipelineError as e:
            self._say(f"release {held.pin.version} cannot be asked: {e.message}")
            running.program.kill()
            return
        except (OSError, UnicodeDecodeError) as e:
            wrong = f"its golden prompts cannot be read: {e}"
        self._post(events.AnsweredWrong(number, wrong) if wrong else events.AnsweredRight(number))

    async def _look(self) -> None:
        """Look at the machine and at the ready server again and again; a server that keeps silent is ended."""
        silent = 0
        while True:
            await self._beside(self._sensors.look, disk=False)
            self._check_expiry()
            running = self._ready()
            if running is not None:
                asked = Engine(self._session, running.address)
                silent = 0 if await asked.healthy() else silent + 1
                self.engine_queue = await asked.queue() if not silent else None
                if silent >= SILENT:
                    self._say("llama-server does not answer and is ended")
                    running.program.kill()
                    silent = 0
            await asyncio.sleep(LOOK_S)

    def _check_expiry(self) -> None:
        for child in self.state.children:
            held = self._held.get(child.pin.digest)
            if held is not None and self._wall() >= held.accepted.manifest.expires:
                self._post(
                    events.Expired(child.pin, f"it expired on {held.accepted.manifest.expires:%Y-%m-%d %H:%M} UTC")
                )

    def _is(self, number: int, phase: Phase) -> bool:
        child = self.state.child(number)
        return child is not None and child.phase is phase

    def _remember(self, held: Held) -> None:
        pins = (self.state.kept, self.state.offered, *(child.pin for child in self.state.children))
        wanted = {pin.digest for pin in pins if pin}
        self._held = {d: h for d, h in self._held.items() if d in wanted} | {held.pin.digest: held}

    def _post(self, event: Event) -> None:
        self._events.append(event)
        self._woken.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._broken = task.exception()
            self._woken.set()

    async def _beside(self, work: Callable[[], T], *, disk: bool = True) -> T:
        """Run what blocks in a thread that does not keep the process from ending."""
        if not disk:
            return await _threaded(work)
        async with self._disk:
            return await _threaded(work)


async def _threaded(work: Callable[[], T]) -> T:
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            value = work()
        except BaseException as e:  # handed to whoever waits
            _tell(result.set_exception, e)
        else:
            _tell(result.set_result, value)

    def _tell(how: Callable[[Any], None], what: Any) -> None:
        def tell() -> None:
            if not result.done():
                how(what)

        if not loop.is_closed():
            loop.call_soon_threadsafe(tell)

    threading.Thread(target=run, daemon=True).start()
    return await result
