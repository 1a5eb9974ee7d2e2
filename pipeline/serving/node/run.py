"""A node from its start to its end: its port, its agent, its certificates."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from pipeline.manifest import gguf
from pipeline.ports import process
from pipeline.serving import tls
from pipeline.serving.node import listen, sensors, sizing
from pipeline.serving.node.agent import Agent
from pipeline.serving.node.app import App
from pipeline.serving.node.releases import Held, Releases
from pipeline.serving.node.sizing import Asked, Sizing
from pipeline.serving.node.state import Policy
from pipeline.serving.role import Role

CALLERS = frozenset({Role.GATEWAY, Role.CONTROLLER})
RELOAD_S = 5.0  # between two looks at the certificates


@dataclass(frozen=True)
class Options:
    """How a node is run; `tls` is the folder of its certificates, `socket` the one it listens on."""

    name: str
    socket: socket.socket
    tls: Path | None
    policy: Policy
    asked: Asked


def run(options: Options, releases: Releases, say: Callable[[str], None]) -> None:
    """Run a node until SIGTERM or SIGINT; raises PipelineError where it cannot begin."""
    import uvloop

    uvloop.run(_run(options, releases, say))


async def _run(options: Options, releases: Releases, say: Callable[[str], None]) -> None:
    context = tls.server_context(options.tls, CALLERS) if options.tls else None
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        agent = Agent(
            options.name, releases=releases, sizer=_sizer(options.asked), session=session, policy=options.policy,
            say=say,
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.end)
        server = listen.server(App(agent, agent.proxy), context, options.policy.drain_s)
        serving = asyncio.create_task(server.serve(sockets=[options.socket]))
        renewing = asyncio.create_task(_renew(options.tls, context, say))
        host, port = options.socket.getsockname()[:2]
        say(f"{options.name} listens on {'https' if context else 'http'}://{host}:{port}")
        try:
            await agent.run()
        finally:
            server.should_exit = True
            renewing.cancel()
            await serving
            with contextlib.suppress(asyncio.CancelledError):
                await renewing


async def _renew(folder: Path | None, context: tls.Context | None, say: Callable[[str], None]) -> None:
    if folder is None or context is None:
        return
    reloader = tls.Reloader(folder, [context])
    while True:
        await asyncio.sleep(RELOAD_S)
        if told := reloader.check():
            say(told)


def _sizer(asked: Asked) -> Callable[[Held], tuple[Sizing, bool]]:
    memory, cores = sensors.memory(), process.processors()

    def sized(held: Held) -> tuple[Sizing, bool]:
        with held.weights.open("rb") as f:
            metadata = gguf.read_header(f, held.weights.stat().st_size).metadata
        model = sizing.model(held.entry, metadata)
        return sizing.size(model, memory=memory, cores=cores, asked=asked), "tokenizer.chat_template" in metadata

    return sized
