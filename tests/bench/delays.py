"""A slow network between two programs of this machine, where the kernel has no netem."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


class Delays:
    """A proxy before a server, through which each piece takes as long as `delay_s` says when it comes."""

    def __init__(self, port: int, delay_s: Callable[[], float]) -> None:
        self._port, self._delay_s = port, delay_s
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listen, and return the port."""
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        with contextlib.suppress(asyncio.CancelledError):  # asyncio.streams reports the end of the loop as a fault
            await asyncio.gather(self._pump(reader, up_writer), self._pump(up_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def send() -> None:
            while True:
                due, data = await pieces.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if not data:
                    return
                writer.write(data)
                await writer.drain()

        sending = asyncio.create_task(send())
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                pieces.put_nowait((loop.time() + self._delay_s(), data))
        pieces.put_nowait((loop.time() + self._delay_s(), b""))
        with contextlib.suppress(OSError):
            await sending
        writer.close()
