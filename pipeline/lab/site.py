"""A site on one machine: edge nodes, a large server, a gateway before them, and a controller where one is wanted, each
a process as users start it.

Rules: everything a process writes lies below one folder, its messages in a file named by it; processes are tied to this
one, so that none outlives it, however it ends; a Ctrl-C reaches this process alone, which then ends them.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from pipeline.errors import ToolError
from pipeline.manifest.statement import GOLDEN
from pipeline.peers import tls
from pipeline.peers.policy import Policy
from pipeline.peers.role import Role
from pipeline.peers.status import STATUS_PATH, Pool, ServerStatus, State
from pipeline.ports import beside, files
from pipeline.ports.beside import Program
from pipeline.serving.gateway.settings import EndpointEntry, Limits, Settings
from pipeline.serving.node.engine import HOST, free_port

NODES, LARGE, GATEWAY, ADMIN, CONTROLLER = ("pi-1", "pi-2"), "gpu-1", "gateway", "admin", "controller"
PATIENCE_S = 300.0  # until all are ready; torch alone takes half a minute to load on a busy machine
END_S = 20.0  # from SIGTERM to SIGKILL
_LOOK_S = 0.2
_REASON = "edge-release: error: "  # how a command begins to say why it ends
_ANSWER = aiohttp.ClientTimeout(total=5)


@dataclass
class Site:
    """The processes by name; `release` are the flags that say which release is served and who is trusted for it.

    `folder` and `logs` are the site's alone; `say` gets a line for the user now and then. With `pki`, a folder with a
    certificate for each name, all speak mutual TLS to one another, and the gateway has its admin port.
    """

    folder: Path
    logs: Path
    release: Sequence[str]
    say: Callable[[str], None]
    nodes: Sequence[str] = NODES
    policy: Policy = field(default_factory=lambda: Policy(cpu=1.0, near_ms=100.0))
    pki: Path | None = None
    ports: Mapping[str, int] = field(init=False)
    _programs: dict[str, Program] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ports = {name: free_port() for name in (*self.servers, GATEWAY, ADMIN, CONTROLLER)}

    @property
    def servers(self) -> Sequence[str]:
        """All that answer."""
        return (*self.nodes, LARGE)

    @property
    def url(self) -> str:
        """The gateway's address for clients."""
        return f"http://{HOST}:{self.ports[GATEWAY]}"

    @property
    def operators(self) -> str:
        """The gateway's address for operators."""
        return self._url(ADMIN) if self.pki else self.url

    @property
    def golden(self) -> Path:
        """The golden prompts of what the nodes serve."""
        return self.folder / self.nodes[0] / "model" / "current" / GOLDEN

    async def open(self) -> None:
        """Start everything and wait until requests may go to every server; raises ToolError as `until_usable`."""
        config = self.folder / "gateway.yaml"
        files.write(config, self._settings().model_dump_json().encode())
        admin = ["--admin", f"{HOST}:{self.ports[ADMIN]}"] if self.pki else []
        await self._start(GATEWAY, "gateway", "--config", str(config), *self._secured(GATEWAY), *admin)
        for name in self.servers:
            await self.start(name)
        await self.until_usable(*self.servers)

    async def start(self, name: str) -> None:
        """Start a server, for the first time or again: it finds on its disk what it had."""
        command = ["serve-large", "--engine", "transformers"] if name == LARGE else ["node"]
        own = ["--name", name, "--home", str(self.folder / name), "--drain", "1", "--host", HOST]
        await self._start(name, *command, *own, *self._secured(name))

    async def steer(self, settings: Path) -> None:
        """Start a controller with its settings, or start it again with others; its decisions stay with the messages."""
        if CONTROLLER in self._programs:
            await self.end(CONTROLLER)
        argv = ["--state", str(self.logs / CONTROLLER), "--health", f"{HOST}:{self.ports[CONTROLLER]}"]
        await self._run(
            CONTROLLER, "controller", "--config", str(settings), "--no-kubernetes", *argv, *self._secured(CONTROLLER)
        )

    async def end(self, name: str) -> None:
        """Ask a process to end, and wait for it."""
        self._programs[name].ask_to_end()
        await self._programs[name].wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a server and to all that it started."""
        own = psutil.Process(self._programs[name].pid)
        for member in (own, *own.children(recursive=True)):
            member.send_signal(number)

    async def kill(self, name: str) -> None:
        """End a server as a power cut does: what it started ends with it."""
        self._programs[name].kill()
        await self._programs[name].wait()

    async def until_usable(self, *names: str) -> None:
        """Wait until servers are ready and the gateway sends requests to them.

        Raises:
            ToolError: a process ended, refuses what it is to serve, or took too long.
        """
        began, waited = time.monotonic(), list(names)
        async with self._session() as session:
            while waited:
                await asyncio.sleep(_LOOK_S)
                await self._check_running(waited)
                usable = await self._usable(session)
                for name in list(waited):
                    if await self._ready(session, name) and name in usable:
                        waited.remove(name)
                        if (seconds := time.monotonic() - began) >= 1:
                            self.say(f"{name} serves {usable[name]} after {seconds:.0f} s")
                if waited and time.monotonic() - began > PATIENCE_S:
                    raise ToolError(f"not ready in {PATIENCE_S:.0f} s: {', '.join(waited)}", hint=self._hint(waited[0]))

    async def close(self) -> None:
        """End every process, by force where asking does not help."""
        running = [program for program in self._programs.values() if program.running]
        for program in running:
            program.ask_to_end()
        ends = [asyncio.ensure_future(program.wait()) for program in running]
        if ends:
            await asyncio.wait(ends, timeout=END_S)
        for program in running:
            program.kill()
        await asyncio.gather(*ends)

    async def look(self, path: str) -> dict[str, Any]:
        """Return what the gateway tells operators; raises ToolError where it does not."""
        async with self._session() as session:
            found = await _get(session, self.operators + path)
        if not found:
            raise ToolError(f"the gateway does not answer {path}", hint=self._hint(GATEWAY))
        told: dict[str, Any] = json.loads(found)
        return told

    def _session(self) -> aiohttp.ClientSession:
        if self.pki is None:
            return aiohttp.ClientSession(timeout=_ANSWER)
        context = tls.client_context(self.pki / CONTROLLER, list(Role))
        return aiohttp.ClientSession(timeout=_ANSWER, connector=aiohttp.TCPConnector(ssl=context))

    async def _start(self, name: str, *arguments: str) -> None:
        own = ["--state", str(self.folder / f"{name}.json"), "--port", str(self.ports[name])]
        await self._run(name, *arguments, *self.release, *own)

    async def _run(self, name: str, *arguments: str) -> None:
        argv = [sys.executable, "-m", "pipeline.cli", *arguments]
        self._programs[name] = await beside.start(
            argv, hint=self._hint(name), name=name, reason=_REASON, log=self.logs / f"{name}.log"
        )

    async def _usable(self, session: aiohttp.ClientSession) -> dict[str, str]:
        """Return the variant of every server that the gateway would ask."""
        found = await _get(session, self.operators + STATUS_PATH)
        pools = json.loads(found)["pools"] if found else []
        return {e["name"]: e["variant"] for pool in pools for e in pool["endpoints"] if e["usable"]}

    async def _ready(self, session: aiohttp.ClientSession, name: str) -> bool:
        found = await _get(session, self._url(name) + STATUS_PATH)
        status = ServerStatus.model_validate_json(found) if found else None
        if status and status.state is State.FAILED:
            raise ToolError(f"{name} serves nothing: {status.reason}", hint=self._hint(name))
        return status is not None and status.state is State.READY

    async def _check_running(self, names: Sequence[str]) -> None:
        for name in (*names, GATEWAY):
            if not self._programs[name].running:
                raise ToolError(await self._programs[name].wait(), hint=self._hint(name))

    def _settings(self) -> Settings:
        """Return the gateway's settings: here all servers share processors, whose load says nothing of one of them."""
        entries = [
            EndpointEntry(name=name, url=self._url(name), pool=Pool.NVLINK if name == LARGE else Pool.EDGE)
            for name in self.servers
        ]
        return Settings(endpoints=entries, policy=self.policy, limits=Limits(ready_s=0.0), poll_s=0.2)

    def _secured(self, name: str) -> list[str]:
        return ["--tls", str(self.pki / name)] if self.pki else []

    def _url(self, name: str) -> str:
        return f"{'https' if self.pki else 'http'}://{HOST}:{self.ports[name]}"

    def _hint(self, name: str) -> str:
        return f"see {self.logs / name}.log"


async def _get(session: aiohttp.ClientSession, url: str) -> bytes:
    """Return an answer's body, nothing where there is no answer yet."""
    try:
        async with session.get(url) as answer:
            return await answer.read() if answer.status == 200 else b""
    except (aiohttp.ClientError, TimeoutError):
        return b""
