"""The server that a node runs: where it listens, and what it is asked.

Rules: it listens on loopback alone, on a port chosen for it, and wants a key that nobody else knows, so that nobody on
this machine goes around the node.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from pipeline.errors import ToolError
from pipeline.ports.beside import Program

HOST = "127.0.0.1"
HINT = "the release's programs are for another machine, or this one lacks memory; see its messages"


@dataclass(frozen=True)
class Address:
    """Where a server listens, and the key it wants."""

    port: int
    key: str = field(repr=False)

    @classmethod
    def new(cls) -> Address:
        """Return a free port, and a key that was never used."""
        return cls(free_port(), secrets.token_urlsafe(24))

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


@dataclass(frozen=True)
class Dialect:
    """What a kind of server is called, and its own figures of requests that it decodes and that wait.

    `told` says whether its figures are a node's to tell.
    """

    name: str
    running: str
    waiting: str
    told: bool = False


class Engine:
    """The questions a node asks a server; each raises ToolError where there is no proper answer."""

    def __init__(self, session: aiohttp.ClientSession, address: Address, dialect: Dialect) -> None:
        """Ask a server at an address through an open session."""
        self._session, self._address, self._dialect = session, address, dialect

    async def healthy(self, timeout_s: float = 5.0) -> bool:
        """Return whether the model is loaded and the server answers; never raises."""
        try:
            async with self._session.get(
                f"{self._address.url}/health", timeout=aiohttp.ClientTimeout(timeout_s)
            ) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def post(self, path: str, body: dict[str, Any], timeout_s: float = 600.0) -> dict[str, Any]:
        """Return the JSON object that a question is answered with."""
        try:
            async with self._session.post(
                f"{self._address.url}{path}", json=body, headers=self._address.headers,
                timeout=aiohttp.ClientTimeout(timeout_s),
            ) as answer:  # fmt: skip
                found = await answer.json()
                if answer.status != 200 or not isinstance(found, dict):
                    raise ToolError(f"{self._dialect.name} answers {path} with {answer.status}: {found}", hint=HINT)
                return found
        except (aiohttp.ClientError, ValueError, TimeoutError) as e:
            raise ToolError(f"{self._dialect.name} does not answer {path}: {e or type(e).__name__}", hint=HINT) from e

    async def figures(self) -> str:
        """Return the server's figures in Prometheus' text format, nothing where it does not answer."""
        try:
            async with self._session.get(
                f"{self._address.url}/metrics", headers=self._address.headers, timeout=aiohttp.ClientTimeout(5)
            ) as answer:
                return await answer.text() if answer.status == 200 else ""
        except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError):
            return ""

    async def queue(self) -> tuple[int, int] | None:
        """Return how many requests it decodes and how many wait, by its own count; None where it does not say."""
        found = _values(await self.figures())
        busy, waiting = found.get(self._dialect.running), found.get(self._dialect.waiting)
        return None if busy is None or waiting is None else (busy, waiting)


async def until_healthy(engine: Engine, program: Program, pause_s: float = 0.1) -> None:
    """Wait until a server answers that its model is loaded, or its program is gone."""
    while program.running and not await engine.healthy():
        await asyncio.sleep(pause_s)


def _values(text: str) -> dict[str, int]:
    """The whole numbers among figures, by name; labels are left out."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        number = value.removesuffix(".0")
        if number.isdecimal():
            found[name.partition("{")[0]] = int(number)
    return found


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
