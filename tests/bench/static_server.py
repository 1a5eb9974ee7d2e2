"""A server that costs next to nothing: a fixed answer, whole or in 64 events, and a status. For benchmarks."""

from __future__ import annotations

import asyncio
import sys

import uvloop

from tests.support.upstreams import DONE, completion, piece

EVENTS = 64
_PIECES = [*[piece("word ")] * (EVENTS - 1), piece("", "stop") + DONE]
GAP_S = 0.002
_WHOLE = completion("an answer")


class Static(asyncio.Protocol):
    """One connection."""

    status = b""
    _whole = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        if len(rest) < length:
            return
        self._data = rest[length:]
        if head.startswith(b"GET"):
            self._answer(self.status)
        elif b'"stream":true' in rest.replace(b" ", b""):
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            self._next([*_PIECES])
        else:
            self._answer(_WHOLE)

    def _answer(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)

    def _next(self, events: list[bytes]) -> None:
        data = events.pop(0)
        self._transport.write(b"%x\r\n" % len(data) + data + b"\r\n" + (b"" if events else b"0\r\n\r\n"))
        if events:
            asyncio.get_running_loop().call_later(GAP_S, self._next, events)


async def main(port: int, status: str) -> None:
    """Serve for ever."""
    Static.status = status.encode()
    server = await asyncio.get_running_loop().create_server(Static, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
