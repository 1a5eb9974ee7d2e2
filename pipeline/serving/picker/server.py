"""The process: the external processor and its health over gRPC, what operators ask over HTTP, and a drain at the end.

Rules: the health services are those of proposal 004: `liveness` while the process answers; `readiness` and the external
processor's own while it can decide, if only that nobody can answer. Ending is the gateway's: not ready first, then no
new conversation, then the open ones get their time.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from fastapi import FastAPI
from grpc_health.v1.health import aio as health
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from pipeline.errors import ToolError
from pipeline.peers import listen
from pipeline.serving.gateway import server
from pipeline.serving.gateway.app import operate
from pipeline.serving.picker.exchange import Exchange
from pipeline.serving.picker.picker import Picker
from pipeline.serving.picker.protocol import METHOD, SERVICE, ProcessingRequest, ProcessingResponse

_READY = ("", "readiness", SERVICE)
_TELL_S = 0.2  # between two looks at whether decisions can be had
_AROUND_BODY = 1 << 20  # bytes of a message besides the body: headers, metadata


def processor(picker: Picker) -> Any:
    """Return the service that data planes call, as gRPC takes it."""

    async def process(_messages: Any, context: Any) -> None:
        exchange = Exchange(picker)
        try:
            while not exchange.over and (message := await context.read()) is not grpc.aio.EOF:
                for reply in await exchange.replies(message):
                    await context.write(reply)
        finally:
            exchange.end()

    method = grpc.stream_stream_rpc_method_handler(
        process, ProcessingRequest.FromString, ProcessingResponse.SerializeToString
    )
    return grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})


@dataclass
class Door:
    """A picker's gRPC server."""

    picker: Picker
    host: str
    port: int

    async def open(self) -> None:
        """Take conversations, and tell whether decisions can be had."""
        size = self.picker.parts.settings.limits.body_bytes + _AROUND_BODY
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", size),
            ]
        )
        self._server.add_generic_rpc_handlers([processor(self.picker)])
        self._health = health.HealthServicer()
        add_HealthServicer_to_server(self._health, self._server)
        self._server.add_insecure_port(f"{self.host}:{self.port}")
        await self._health.set("liveness", HealthCheckResponse.SERVING)
        await self._server.start()
        self._teller = asyncio.create_task(self._tell())

    async def close(self) -> None:
        """Take no more conversations, and give the open ones their time."""
        await self._server.stop(self.picker.parts.settings.limits.drain_s)
        self._teller.cancel()

    async def _tell(self) -> None:
        told: int | None = None
        while True:
            status = HealthCheckResponse.SERVING if self.picker.can_decide else HealthCheckResponse.NOT_SERVING
            for service in _READY if status != told else ():
                await self._health.set(service, status)
            told = status
            await asyncio.sleep(_TELL_S)


def check(host: str, port: int, option: str) -> None:
    """Raise ToolError unless an address is free: found before anything runs, that is one line and not a traceback."""
    try:
        socket.create_server((host, port)).close()
    except OSError as e:
        raise ToolError(f"{host}:{port} cannot be listened on: {e.strerror}", hint=f"give another {option}") from e


def serve(picker: Picker, host: str, port: int, metrics_port: int) -> None:
    """Serve until told to end; raises ToolError where an address cannot be listened on."""
    check(host, port, "--port")
    check(host, metrics_port, "--metrics-port")
    door = Door(picker, host, port)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await picker.start()
        await door.open()
        try:
            yield
        finally:
            await door.close()
            await picker.stop()

    app = FastAPI(title="edge-release endpoint-picker", version="1", lifespan=lifespan)
    operate(app, picker)
    server.serve(app, picker, listen.bind(host, metrics_port, tls=False, insecure=True))
