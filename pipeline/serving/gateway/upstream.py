"""What nodes and large servers are asked, and what counts as an answer.

Rules: whatever goes wrong comes out as `UpstreamError`, which says whether the endpoint is at fault; nothing is read
beyond bounds and time; what a client did wrong comes back as the server's own answer.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic_core import from_json

from pipeline.serving.gateway import sse
from pipeline.serving.gateway.connection import Connection
from pipeline.serving.gateway.connections import Connections, NotConnectedError
from pipeline.serving.gateway.settings import Limits

CLIENTS_FAULT = frozenset({400, 413, 415, 422})
ALIVE = frozenset({429, 500})  # says so itself: no reason to leave it alone
_STREAM = "text/event-stream"


class Fault(StrEnum):
    """How an endpoint failed; a label of metrics."""

    CONNECT = "connect"
    CLOSED = "closed"
    TIMEOUT = "timeout"
    STATUS = "status"
    GARBAGE = "garbage"
    OVERSIZED = "oversized"
    ERROR_EVENT = "error_event"


class UpstreamError(Exception):
    """An endpoint gave no answer; `counts` says whether its circuit should know."""

    def __init__(self, fault: Fault, detail: str, *, counts: bool = True) -> None:
        super().__init__(f"{fault}: {detail}")
        self.fault = fault
        self.counts = counts


@dataclass(frozen=True, slots=True)
class Whole:
    """A complete answer; `status` is 200 or what the client did wrong."""

    status: int
    body: bytes
    document: dict[str, Any]


class Client:
    """Connections to all endpoints; close it."""

    def __init__(self, limits: Limits, tls: ssl.SSLContext | None = None) -> None:
        self._limits = limits
        self._connections = Connections(limits.connect_s, tls or ssl.create_default_context())

    async def close(self) -> None:
        """Close every connection that no answer uses."""
        await self._connections.close()

    async def get(self, url: str, limit: int) -> bytes:
        """Return a small document; raises UpstreamError."""
        with _translated():
            async with asyncio.timeout(self._limits.connect_s):
                with closing(await self._connections.ask("GET", url, {})) as answer:
                    if answer.status != 200:
                        raise UpstreamError(Fault.STATUS, str(answer.status))
                    return await _read(answer, limit)

    async def whole(self, url: str, body: bytes, headers: Mapping[str, str]) -> Whole:
        """Ask for a complete answer, for as long as the caller waits; raises UpstreamError."""
        with _translated(), closing(await self._connections.ask("POST", url, headers, body)) as answer:
            return _whole(answer.status, await _read(answer, self._limits.answer_bytes))

    async def stream(self, url: str, body: bytes, headers: Mapping[str, str]) -> Stream | Whole:
        """Return a streamed answer, to be closed, or what the client did wrong; raises UpstreamError."""
        with _translated():
            async with asyncio.timeout(self._limits.first_s):
                answer = await self._connections.ask("POST", url, headers, body)
        if answer.status == 200 and answer.kind == _STREAM:
            return Stream(answer, self._limits)
        with _translated(), closing(answer):
            async with asyncio.timeout(self._limits.first_s):
                found = _whole(answer.status, await _read(answer, self._limits.answer_bytes))
            if found.status == 200:
                raise UpstreamError(Fault.GARBAGE, "no stream where one was asked for")
            return found


class Stream:
    """The events of one streamed answer, as bytes; close it.

    One timer watches a stream instead of one for each event: it counts only the time in which an event is waited for,
    so that a slow client is not taken for a dead server.
    """

    def __init__(self, answer: Connection, limits: Limits) -> None:
        self._answer = answer
        self._limits = limits
        self._rest = self._last = b""
        self._loop = asyncio.get_running_loop()
        self._patience_s = limits.first_s
        self._since: float | None = None
        self._late = False
        self._timer = self._loop.call_later(self._patience_s, self._look)

    def close(self) -> None:
        """Give the connection back, or cut it where the answer is not at its end: the server then stops decoding."""
        self._timer.cancel()
        self._answer.close(ending=sse.is_done(self._last))

    async def first(self) -> bytes:
        """Return the first events; raises UpstreamError where none comes in time."""
        found = await self.more()
        self._patience_s = self._limits.chunk_s
        return found

    async def more(self) -> bytes:
        """Return the next whole events; empty at the stream's end."""
        self._since = self._loop.time()
        try:
            with _translated():
                return await self._block()
        except UpstreamError as e:
            if self._late:
                raise UpstreamError(Fault.TIMEOUT, "no event in time") from e
            raise
        finally:
            self._since = None

    async def _block(self) -> bytes:
        while piece := await self._answer.read():
            data = self._rest + piece
            end = data.rfind(b"\n\n") + 2
            self._rest = data[end:] if end > 1 else data
            if len(self._rest) > self._limits.event_bytes:
                raise UpstreamError(Fault.OVERSIZED, "an event of a stream is too large")
            if end > 1:
                self._last = data[:end]
                return self._last
        return b""

    def _look(self) -> None:
        now = self._loop.time()
        left = self._patience_s - (now - self._since if self._since is not None else 0.0)
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
            return
        self._late = True
        self._answer.cut()


class _translated:  # noqa: N801 - reads as a verb in `with`
    """Turn what connections raise into UpstreamError."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if error is None or isinstance(error, (UpstreamError, asyncio.CancelledError)):
            return
        if isinstance(error, TimeoutError):
            raise UpstreamError(Fault.TIMEOUT, "no answer in time") from error
        if isinstance(error, NotConnectedError):
            raise UpstreamError(Fault.CONNECT, str(error)) from error
        if isinstance(error, OSError):
            raise UpstreamError(Fault.CLOSED, str(error)) from error
        if isinstance(error, ValueError):
            raise UpstreamError(Fault.GARBAGE, str(error)) from error


def _whole(status: int, data: bytes) -> Whole:
    if status != 200 and status not in CLIENTS_FAULT:
        raise UpstreamError(Fault.STATUS, str(status), counts=status not in ALIVE)
    try:
        document = from_json(data)
    except ValueError as e:
        raise UpstreamError(Fault.GARBAGE, "no JSON") from e
    if not isinstance(document, dict) or (status == 200 and not _is_completion(document)):
        raise UpstreamError(Fault.GARBAGE, "no completion")
    return Whole(status, data, document)


def _is_completion(document: dict[str, Any]) -> bool:
    choices = document.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(c, dict) for c in choices):
        return False
    return all(isinstance(c.get("text"), str) or isinstance(c.get("message"), dict) for c in choices)


async def _read(answer: Connection, limit: int) -> bytes:
    if (answer.length or 0) > limit:
        raise UpstreamError(Fault.OVERSIZED, f"more than {limit} bytes")
    pieces: list[bytes] = []
    size = 0
    while piece := await answer.read():
        size += len(piece)
        if size > limit:
            raise UpstreamError(Fault.OVERSIZED, f"more than {limit} bytes")
        pieces.append(piece)
    return b"".join(pieces)
