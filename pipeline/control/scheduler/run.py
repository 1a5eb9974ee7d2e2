"""The extender from its start to its end: its port, and what looks at nodes and releases again and again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.control.scheduler.app import Extender
from pipeline.control.scheduler.watch import Nodes
from pipeline.peers import listen, tls

RELOAD_S = 5.0  # between two looks at the certificate
DRAIN_S = 5.0
AGAIN_S = 1.0  # after which nodes and pods are looked at anew


@dataclass(frozen=True)
class Options:
    """How the extender is run: its port, its certificate's folder, and the seconds between two looks at the channel."""

    bound: socket.socket
    https: Path | None
    poll_s: float


def run(options: Options, extender: Extender, say: Callable[[str], None]) -> None:
    """Answer until SIGTERM or SIGINT; raises PipelineError where that cannot begin."""
    import uvloop

    uvloop.run(_run(options, extender, say))


async def _run(options: Options, extender: Extender, say: Callable[[str], None]) -> None:
    context = tls.public_context(options.https) if options.https else None
    server = listen.server(extender, context, DRAIN_S)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: setattr(server, "should_exit", True))
    reloader = tls.Reloader(options.https, [context]) if options.https and context else None
    looks = [
        _again(extender.releases.look, options.poll_s, lambda: extender.releases.problem, say),
        _again(reloader.check if reloader else lambda: None, RELOAD_S, lambda: None, say),
    ]
    tasks = [asyncio.create_task(look) for look in looks]
    ended = threading.Event()
    for follow in (extender.nodes.follow_nodes, extender.nodes.follow_pods):
        # Their reads of the API take their own time: none of them is waited for at the end.
        threading.Thread(target=_follow, args=(follow, extender.nodes, ended, say), daemon=True).start()
    host, port = options.bound.getsockname()[:2]
    say(f"scheduler extender: http{'s' if context else ''}://{host}:{port} (/filter, /prioritize, /metrics)")
    try:
        await server.serve(sockets=[options.bound])
    finally:
        ended.set()
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)


async def _again(
    look: Callable[[], str | None], seconds: float, problem: Callable[[], str | None], say: Callable[[str], None]
) -> None:
    said: str | None = None
    while True:
        if told := await asyncio.to_thread(look):
            say(told)
        found = problem()
        if found is not None and found != said:
            say(found)
        said = found
        await asyncio.sleep(seconds)


def _follow(
    follow: Callable[[threading.Event], None], nodes: Nodes, ended: threading.Event, say: Callable[[str], None]
) -> None:
    said: str | None = None
    while not ended.is_set():
        follow(ended)
        if nodes.problem != said and (said := nodes.problem) is not None:
            say(said)
        ended.wait(AGAIN_S)
