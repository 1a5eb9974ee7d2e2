"""The servers of a node as programs: started, asked and ended by their numbers.

Rules: what happens to a server is an event, nothing is decided here; a program that is gone is known to nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from pipeline.errors import PipelineError
from pipeline.ports.beside import Program
from pipeline.serving.node import events
from pipeline.serving.node.backend import Backend
from pipeline.serving.node.engine import Address, Engine, until_healthy
from pipeline.serving.node.releases import Held
from pipeline.serving.node.sizing import Sizing
from pipeline.serving.node.work import Work


@dataclass(frozen=True)
class Running:
    """A server's program, where it listens, and what it serves."""

    program: Program
    address: Address
    held: Held
    sizing: Sizing


class Servers:
    """The programs that run."""

    def __init__(
        self, backend: Backend, session: aiohttp.ClientSession, work: Work, say: Callable[[str], None]
    ) -> None:
        """Begin with none; `say` is told of what happens, a line each."""
        self._backend, self._session, self._work, self._say = backend, session, work, say
        self._running: dict[int, Running] = {}

    def get(self, number: int) -> Running | None:
        """Return a server that runs, or None."""
        return self._running.get(number)

    def asked(self, address: Address) -> Engine:
        """Return what asks a server."""
        return Engine(self._session, address, self._backend.dialect)

    def signal(self, number: int, how: Callable[[Program], None]) -> None:
        """Do something to a program, if it still runs."""
        if number in self._running:
            how(self._running[number].program)

    async def start(self, number: int, held: Held, wanted: Callable[[], bool]) -> None:
        """Start a release's server and wait until its model is loaded, or it is `wanted` no more.

        Raises:
            PipelineError: it cannot be started.
        """
        sizing = self._backend.size(held)
        if not wanted():
            self._work.post(events.Exited(number, "it is not wanted any more"))
            return
        program, address = await self._backend.launch(held, sizing)
        self._running[number] = Running(program, address, held, sizing)
        size = f"{sizing.slots} slots of {sizing.context}"
        self._say(f"release {held.pin.version}: {self._backend.dialect.name} {program.pid} with {size}")
        self._work.spawn(self._wait(number, program))
        if not wanted():
            program.ask_to_end()
        await until_healthy(self.asked(address), program)
        if program.running:
            self._work.post(events.Loaded(number))

    async def probe(self, number: int) -> None:
        """Ask a server the golden prompts."""
        running = self.get(number)
        if running is None:
            return
        held = running.held
        try:
            wrong = await self._backend.check(self.asked(running.address), held)
        except PipelineError as e:
            self._say(f"release {held.pin.version} cannot be asked: {e.message}")
            running.program.kill()
            return
        except (OSError, UnicodeDecodeError) as e:
            wrong = f"its golden prompts cannot be read: {e}"
        self._work.post(events.AnsweredWrong(number, wrong) if wrong else events.AnsweredRight(number))

    async def _wait(self, number: int, program: Program) -> None:
        reason = await program.wait()
        self._running.pop(number, None)
        self._say(reason)
        self._work.post(events.Exited(number, reason))
