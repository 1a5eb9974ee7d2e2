"""The connections to all servers: made where there is none to use again, HTTP/1.1 over TCP or TLS.

Rules: every address of a host is tried, the next one before the first has failed; nothing is redirected, compressed or
sent through a proxy. A server that takes no connection comes out as NotConnectedError, or as TimeoutError.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohappyeyeballs

from pipeline.serving.gateway.connection import Connection

_SECOND_S = 0.25  # until a host's next address is tried too (RFC 8305)


class NotConnectedError(ConnectionError):
    """A server took no connection."""


@dataclass
class _Place:
    """Where a URL is, the beginning of every request there, and its idle connections, the latest used last."""

    host: str
    port: int
    secure: bool
    head: str
    idle: deque[Connection]

    @classmethod
    def of(cls, url: str, idle: dict[tuple[str, int, bool], deque[Connection]]) -> _Place:
        parts = urlsplit(url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        head = f" {target} HTTP/1.1\r\nhost: {parts.netloc}\r\n"
        return cls(host, port, secure, head, idle.setdefault((host, port, secure), deque()))


@dataclass
class Connections:
    """The connections to all servers; `connect_s` seconds is how long one may take to make."""

    connect_s: float
    tls: ssl.SSLContext
    _idle: dict[tuple[str, int, bool], deque[Connection]] = field(default_factory=dict)
    _places: dict[str, _Place] = field(default_factory=dict)

    async def ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> Connection:
        """Send a request to a URL of the settings, and return the connection once the answer's head is there."""
        place = self._places.get(url) or self._places.setdefault(url, _Place.of(url, self._idle))
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        head = f"{method}{place.head}{lines}content-length: {len(body)}\r\n\r\n".encode("latin-1")
        connection = self._kept(place.idle) or await self._connect(place)
        try:
            await connection.ask(head + body)
        except BaseException:
            connection.cut()
            raise
        return connection

    def _kept(self, idle: deque[Connection]) -> Connection | None:
        now = asyncio.get_running_loop().time()
        while idle and not idle[0].is_usable(now):
            idle.popleft().cut()
        while idle:
            if (connection := idle.pop()).is_usable(now):
                return connection
        return None

    async def _connect(self, place: _Place) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.connect_s):
                found = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
                sock = await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=_SECOND_S)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                tls, name = (self.tls, place.host) if place.secure else (None, None)
                _, connection = await loop.create_connection(
                    lambda: Connection(place.idle), sock=sock, ssl=tls, server_hostname=name
                )
        except TimeoutError:
            raise
        except OSError as e:
            raise NotConnectedError(str(e)) from e
        return connection

    async def close(self) -> None:
        """Close the idle connections; the others close with their answers."""
        for idle in self._idle.values():
            while idle:
                idle.pop().cut()
        await asyncio.sleep(0)
