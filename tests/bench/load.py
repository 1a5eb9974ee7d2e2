"""Clients that send one request after another over kept connections, and what a process used meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

import uvloop


def cpu_s(pids: Iterable[int]) -> float:
    """Return the seconds of processor time that the threads of processes have used, as the scheduler counts them."""
    threads = (path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(path.read_text().split()[0]) for path in threads) / 1e9


def load(port: int, body: bytes, requests: int, concurrency: int) -> list[float]:
    """Send requests to a port of this machine; return the seconds each took, in order of size."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer none\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    took: list[float] = []

    async def run() -> None:
        left, loop = iter(range(requests)), asyncio.get_running_loop()
        made = [_Client(head.encode() + body, left, took) for _ in range(concurrency)]
        for client in made:
            await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
        await asyncio.gather(*(client.done for client in made))

    uvloop.run(run())
    return sorted(took)


class _Client(asyncio.Protocol):
    def __init__(self, request: bytes, left: Iterable[int], took: list[float]) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._request, self._left, self._took = request, iter(left), took

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError(f"closed in the middle of {self._data[:200]!r}"))

    def _next(self) -> None:
        self._data = b""
        self._began = time.perf_counter()
        if next(self._left, None) is None:
            self.done.set_result(None)
            self._transport.close()
            return
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(AssertionError(self._data))
            self._transport.abort()
            return
        _, counted, length = head.lower().partition(b"content-length: ")
        if len(rest) == int(length.split(b"\r\n", 1)[0]) if counted else rest.endswith(b"\r\n0\r\n\r\n"):
            self._took.append(time.perf_counter() - self._began)
            self._next()
