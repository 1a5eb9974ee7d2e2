"""A controller from its start to its end: its port, its certificates, its rounds."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp

from pipeline.control.act import Did
from pipeline.control.app import App
from pipeline.control.controller import Controller, Parts
from pipeline.control.fetch import Fetch
from pipeline.control.gateways import Gateways, resolved
from pipeline.control.lead import Alone, Leader
from pipeline.control.metrics import Metrics
from pipeline.control.promql import PromQL
from pipeline.control.scrape import Scrape
from pipeline.control.settings import Settings
from pipeline.errors import CatalogError
from pipeline.peers import listen, tls
from pipeline.peers.role import Role
from pipeline.ports.kube import Cluster
from pipeline.ports.lease import Hold

NAME = "edge-release-controller"
RELOAD_S = 5.0  # between two looks at the certificate, and at the settings
_END_S = 2.0
SERVERS = frozenset({Role.GATEWAY, Role.NODE, Role.LARGE})


@dataclass(frozen=True)
class Options:
    """How a controller is run.

    `reread` returns the settings as they are now, or raises CatalogError; `bound` is where it tells of itself, `lease`
    the namespace of its lease.
    """

    settings: Settings
    folder: Path
    tls: Path | None = None
    cluster: Cluster | None = None
    bound: socket.socket | None = None
    name: str = "controller"
    lease: str = "edge-release"
    dry_run: bool = False
    reread: Callable[[], Settings] | None = None


def with_port(options: Options, bound: socket.socket) -> Options:
    """Return options of a controller that tells of itself at a port."""
    return replace(options, bound=bound)


def run(options: Options, say: Callable[[str], None]) -> None:
    """Control until SIGTERM or SIGINT; raises PipelineError where that cannot begin."""
    asyncio.run(_run(options, say))


def once(options: Options, say: Callable[[str], None]) -> tuple[Controller, list[Did]]:
    """Do one round, whoever leads, after as many looks as rates need; return what came of it."""
    return asyncio.run(_once(options, say))


async def _run(options: Options, say: Callable[[str], None]) -> None:
    context = tls.client_context(options.tls, SERVERS) if options.tls else None
    async with _session() as session:
        controller = _controller(options, session, context, say)
        end, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end.set)
        tasks = [asyncio.create_task(_renew(options.tls, context, say))]
        app = App(controller)
        server = listen.server(app, None, _END_S) if options.bound else None
        if server and options.bound:
            host, port = options.bound.getsockname()[:2]
            say(f"controller: http://{host}:{port} (/metrics, /healthz, /readyz)")
            tasks.append(asyncio.create_task(server.serve(sockets=[options.bound])))
        try:
            while (changed := await _until_changed(app.controller, options, end, say)) is not None:
                say("the settings changed: it goes on by the new ones")
                options = replace(options, settings=changed)
                app.controller = _controller(options, session, context, say, app.controller.metrics)
        finally:
            tasks[0].cancel()
            if server:
                server.should_exit = True
            await asyncio.gather(*tasks, return_exceptions=True)


async def _until_changed(
    controller: Controller, options: Options, end: asyncio.Event, say: Callable[[str], None]
) -> Settings | None:
    """Let a controller go on until the end, or until the settings are others; return those."""
    stop = asyncio.Event()
    ending, rereading = asyncio.create_task(end.wait()), asyncio.create_task(_changed(options, say))
    running = asyncio.create_task(controller.run(stop))
    try:
        await asyncio.wait({ending, rereading, running}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.set()
        await running
        ending.cancel()
        changed = rereading.result() if rereading.done() else None
        rereading.cancel()
    return None if end.is_set() else changed


async def _changed(options: Options, say: Callable[[str], None]) -> Settings:
    """Return the settings once they are others; a file that cannot be used is told of, once, and changes nothing."""
    told = ""
    while True:
        await asyncio.sleep(RELOAD_S)
        try:
            found = await asyncio.to_thread(options.reread) if options.reread else options.settings
        except CatalogError as e:
            if e.message != told:
                say(f"the settings stay as they were: {e.message}")
            told = e.message
            continue
        told = ""
        if found != options.settings:
            return found


async def _once(options: Options, say: Callable[[str], None]) -> tuple[Controller, list[Did]]:
    context = tls.client_context(options.tls, SERVERS) if options.tls else None
    async with _session() as session:
        controller = _controller(options, session, context, say)
        parts = controller.parts
        await asyncio.to_thread(parts.leader.look)
        await parts.look()
        if options.settings.prometheus is None:  # a rate needs two looks
            await asyncio.sleep(options.settings.looking.rate_s / 2 + 0.1)
        await asyncio.to_thread(parts.leader.look)  # the lease is for less than that pause
        did = await controller.once()
        await asyncio.to_thread(parts.leader.end)
        controller.log.close()
        return controller, did


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=True)


def _controller(
    options: Options,
    session: aiohttp.ClientSession,
    context: tls.Context | None,
    say: Callable[[str], None],
    metrics: Metrics | None = None,
) -> Controller:
    settings = options.settings
    fetch = Fetch(session, settings.looking, context)
    gateways, prometheus = Gateways(settings.gateways, resolved), settings.prometheus
    scrape = Scrape(fetch, settings, gateways, time.monotonic)
    look = PromQL(fetch, settings, gateways, prometheus).look if prometheus else scrape.look
    leader: Leader | Alone = Alone()
    if options.cluster is not None and not options.dry_run:
        lease_s = settings.acting.lease_s
        leader = Leader(Hold(options.cluster, options.lease, NAME, options.name, lease_s, time.monotonic))
    parts = Parts(settings, look, fetch, gateways, leader, options.folder, say, options.cluster, options.dry_run)
    return Controller(parts, metrics or Metrics())


async def _renew(folder: Path | None, context: tls.Context | None, say: Callable[[str], None]) -> None:
    if folder is None or context is None:
        return
    reloader = tls.Reloader(folder, [context])
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(RELOAD_S)
            if told := reloader.check():
                say(told)
