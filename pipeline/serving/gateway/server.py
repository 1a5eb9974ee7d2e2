"""The process: uvicorn around the application, its limits on connections, and a drain instead of an end.

Rules: after SIGTERM the gateway says that it is not ready, waits for balancers to notice, takes no more connections,
and ends with status 0 when the requests under way are done or their time is up. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import signal
import ssl
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeline.serving.gateway.app import App
from pipeline.serving.gateway.gateway import Gateway
from pipeline.serving.gateway.settings import Limits

_KEEP_ALIVE_S = 60  # longer than balancers keep theirs, so that they close connections, not we


def serve(gateway: Gateway, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
    """Serve until told to end."""
    limits = gateway.parts.settings.limits
    config = uvicorn.Config(
        App(gateway),
        host=host,
        port=port,
        loop="uvloop",
        http=_bounded(limits),
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
    _Server(config, gateway).run()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway

    async def serve(self, sockets: Any = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        if self._gateway.draining:
            self.should_exit = self.force_exit = True
            return
        self._gateway.draining = True
        wait = self._gateway.parts.settings.limits.ready_s if sig == signal.SIGTERM else 0.0
        self._loop.call_soon_threadsafe(self._loop.call_later, wait, self._end)

    def _end(self) -> None:
        self.should_exit = True


def _bounded(limits: Limits) -> type[HttpToolsProtocol]:
    """Return the protocol that closes a connection whose request line and headers are too large or too slow.

    uvicorn bounds neither; a complete head is measured again by the application, which can answer 431.
    """

    class Bounded(HttpToolsProtocol):
        _head = 0
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            if self._late is not None:
                self._head += len(data)
                if self._head > 2 * limits.header_bytes + limits.body_bytes:
                    self.transport.abort()
                    return
            super().data_received(data)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._await_head()

        def on_headers_complete(self) -> None:
            self._stop_waiting()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self._stop_waiting()
            self._late = self.loop.call_later(limits.body_s, self.transport.abort)

        def _stop_waiting(self) -> None:
            self._head = 0
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Bounded
