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

from pipeline.peers import listen, tls
from pipeline.peers.role import Role
from pipeline.ports import process
from pipeline.serving.node.agent import Agent
from pipeline.serving.node.app import App
from pipeline.serving.node.backend import Backend
from pipeline.serving.node.releases import Releases
from pipeline.serving.node.state import Policy

CALLERS = frozenset({Role.GATEWAY, Role.CONTROLLER})
RELOAD_S = 5.0  # between two looks at the certificates


@dataclass(frozen=True)
class Options:
    """How a node is run; `tls` is the folder of its certificates, `bound` the port it listens on, `health` another one
    for whoever has no certificate and only asks whether it lives.
    """

    name: str
    bound: socket.socket
    tls: Path | None
    policy: Policy
    backend: Backend
    health: socket.socket | None = None


def run(options: Options, releases: Releases, say: Callable[[str], None]) -> None:
    """Run a node until SIGTERM or SIGINT; raises PipelineError where it cannot begin."""
    import uvloop

    process.give_back_buffers()
    uvloop.run(_run(options, releases, say))


async def _run(options: Options, releases: Releases, say: Callable[[str], None]) -> None:
    context = tls.server_context(options.tls, CALLERS) if options.tls else None
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        agent = Agent(
            options.name, releases=releases, backend=options.backend, session=session, policy=options.policy,
            say=say,
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.end)
        app, drain_s = App(agent, agent.proxy), options.policy.drain_s
        servers = [(listen.server(app, context, drain_s), options.bound)]
        if options.health:
            servers.append((listen.server(app.health, None, 1), options.health))
        serving = [asyncio.create_task(server.serve(sockets=[bound])) for server, bound in servers]
        renewing = asyncio.create_task(_renew(options.tls, context, say))
        host, port = options.bound.getsockname()[:2]
        say(f"{options.name} listens on {'https' if context else 'http'}://{host}:{port}")
        try:
            await agent.run()
        finally:
            for server, _ in servers:
                server.should_exit = True
            renewing.cancel()
            await asyncio.gather(*serving)
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
