"""One connection to a server: a request at a time, its answer as it comes.

Rules: only a connection that carried one complete answer and nothing else is kept, and only for as long as the server
keeps it; what comes is bounded until it is taken; an answer that nobody waits for any more cuts its connection, so that
the server stops. What goes wrong comes out as ConnectionError (it closed early) or ValueError (it speaks no HTTP).
"""

from __future__ import annotations

import asyncio
from collections import deque

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

_KEPT_S = 4.0  # llama-server drops idle connections after 5 s
_HEAD_BYTES = 64 << 10
_AHEAD_BYTES = 256 << 10  # of an answer read before they are asked for
_ENDING_S = 1.0  # for the last bytes of an answer whose end was seen


class Connection(asyncio.Protocol):
    """A connection with the answer it carries; `idle` takes it when it may be used again.

    Once an answer's head is there, `status`, `kind` (its media type) and `length` (in bytes, None where it tells none)
    are its own; `since` is when the connection became idle, in the loop's seconds.
    """

    def __init__(self, idle: deque[Connection]) -> None:
        self.status = 0
        self.kind = ""
        self.length: int | None = None
        self.since = 0.0
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._pieces: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._asked = self._begun = self._done = self._kept = self._framed = self._paused = False
        self._ahead = 0
        self._ending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._parser = HttpResponseParser(self)

    def is_usable(self, now: float) -> bool:
        """Whether it was idle for so short a time that the server keeps it yet."""
        return now - self.since < _KEPT_S and not self._transport.is_closing()

    async def ask(self, request: bytes) -> None:
        """Send a request, and wait until the answer's head is there."""
        self.status, self.kind, self.length, self._ahead = 0, "", None, 0
        self._asked, self._begun, self._done, self._kept, self._framed = True, False, False, False, False
        self._transport.write(request)
        while not self._begun:
            await self._more()

    async def read(self) -> bytes:
        """Return what came of the body since the last time; empty at its end."""
        while not self._pieces:
            if self._done:
                return b""
            await self._more()
        found = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._ahead = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return found

    def close(self, *, ending: bool = False) -> None:
        """Keep the connection where its answer is complete, or about to be (`ending`); else cut it."""
        if self._done and self._kept and not self._transport.is_closing():
            self._asked, self.since = False, self._loop.time()
            self._pieces.clear()
            self._idle.append(self)
        elif ending and self._kept:
            self._ending = self._loop.call_later(_ENDING_S, self.cut)
        else:
            self.cut()

    def cut(self) -> None:
        """Close the connection at once."""
        self._asked = False
        self._transport.abort()

    def _ended(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
            self.close()

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def data_received(self, data: bytes) -> None:
        try:
            if not self._asked or self._done:
                raise ValueError("more than was asked for")
            self._parser.feed_data(data)
            self._ahead += len(data)
            if not self._begun and self._ahead > _HEAD_BYTES:
                raise ValueError("the head of an answer is too large")
        except (HttpParserError, HttpParserUpgrade, ValueError) as e:
            self._error = self._error or ValueError(str(e))
            self._kept = False
            self._transport.abort()
        if self._ahead > _AHEAD_BYTES and not self._paused and not self._done:
            self._paused = True
            self._transport.pause_reading()
        if self._done:
            self._ended()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        if self._begun and not self._framed and self._error is None:
            self._done = True  # such an answer ends with its connection
        self._error = self._error or ConnectionError(str(exc or "the server closed the connection"))
        self._ended()
        self._wake()

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self.kind = value.partition(b";")[0].strip().lower().decode("latin-1")
        elif name == b"content-length":
            self.length, self._framed = int(value), True
        elif name == b"transfer-encoding":
            self._framed = True

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status >= 200:  # what comes before is said by the way (RFC 9110, 15.2)
            self._begun, self._kept = True, self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_begin(self) -> None:
        if self._done:
            raise ValueError("more than was asked for")

    def on_message_complete(self) -> None:
        self._done = self._begun
