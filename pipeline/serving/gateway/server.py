"""The process: uvicorn around the application, its limits on connections, and a drain instead of an end.

Rules: after SIGTERM the process says that it is not ready, waits for balancers to notice, takes no more connections,
and ends with status 0 when the requests under way are done or their time is up. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import ssl
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeline.peers import asgi
from pipeline.ports import process
from pipeline.serving.gateway import wire
from pipeline.serving.gateway.admin_port import AdminPort
from pipeline.serving.gateway.settings import Limits
from pipeline.serving.gateway.watcher import Watcher

_CONTINUE = b"HTTP/1.1 100 "
_KEEP_ALIVE_S = 60  # longer than balancers keep theirs, so that they close connections, not we


def serve(
    app: asgi.App,
    watcher: Watcher,
    bound: socket.socket,
    tls: ssl.SSLContext | None = None,
    admin: AdminPort | None = None,
) -> None:
    """Serve on a socket that listens until told to end; with `admin`, operators are served there."""
    process.give_back_buffers()
    limits = watcher.parts.settings.limits
    protocol = _bounded(limits)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(round(limits.drain_s), 1),
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )
    _Server(config, watcher, protocol, admin).run(sockets=[bound])


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, watcher: Watcher, protocol: type[HttpToolsProtocol], admin: AdminPort | None
    ) -> None:
        super().__init__(config)
        self._watcher, self._protocol, self._admin = watcher, protocol, admin

    async def serve(self, sockets: Any = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what is there by now stays: collections need not look through it
        if self._admin is not None:
            self._admin.open(self._protocol)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._admin is not None:
            await self._admin.close()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        if self._watcher.draining:
            self.should_exit = self.force_exit = True
            return
        self._watcher.draining = True
        wait = self._watcher.parts.settings.limits.ready_s if sig == signal.SIGTERM else 0.0
        self._loop.call_soon_threadsafe(self._loop.call_later, wait, self._end)

    def _end(self) -> None:
        self.should_exit = True


def _bounded(limits: Limits) -> type[HttpToolsProtocol]:
    """Return the protocol that closes a connection whose request line and headers are too large or too slow.

    uvicorn bounds neither; a complete head is measured again by the application, which can answer 431. A head that
    comes at once, as nearly all do, costs no timer.
    """

    class Bounded(HttpToolsProtocol):
        _head = 0
        _waits = True
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._client = wire.Connected()
            self._await_head()

        def data_received(self, data: bytes) -> None:
            if self._waits:
                self._head += len(data)
                if self._head > 2 * limits.header_bytes + limits.body_bytes:
                    self.transport.abort()
                    return
            super().data_received(data)
            if self._waits and self._late is None and not self.transport.is_closing():
                self._await_head()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._stop_waiting()
            self._waits, self._client.said_all = True, False

        def on_headers_complete(self) -> None:
            self._stop_waiting()
            super().on_headers_complete()
            self.cycle.scope[wire.CONNECTED] = self._client  # type: ignore[literal-required]
            self.cycle.transport = cast("asyncio.Transport", _Joined(self.transport))

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._client.said_all = True

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)
            self._client.lost()

        def _await_head(self) -> None:
            self._late = self.loop.call_later(limits.body_s, self.transport.abort)

        def _stop_waiting(self) -> None:
            self._head, self._waits = 0, False
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Bounded


class _Joined:
    """A transport that sends an answer's head together with what follows it: one packet instead of two."""

    __slots__ = ("_head", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif self._head is None and not data.startswith(_CONTINUE):
            self._head = data
            return
        self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        if self._head:
            self._transport.write(self._head)
        self._transport.close()
