"""One llama-server: how it is started, and what it is asked.

Rules: it decodes as the checks did: keys and values in f32, flash attention off. It listens on loopback alone, on a
port chosen for it, and wants a key that nobody else knows, so that nobody on this machine goes around the node. It has
no page of its own, fetches nothing, and lets nobody change its settings.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from pipeline.errors import ToolError
from pipeline.ports import beside
from pipeline.ports.beside import Program
from pipeline.serving.node.sizing import BATCH, PROMPT_CACHE, Sizing

HOST = "127.0.0.1"
KEY_VARIABLE = "LLAMA_API_KEY"
_HINT = "the release's programs are for another machine, or this one lacks memory; see its messages"


@dataclass(frozen=True)
class Address:
    """Where a server listens, and the key it wants."""

    port: int
    key: str = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


def arguments(server: Path, weights: Path, alias: str, sizing: Sizing, port: int) -> list[str]:
    """Return the command line; the key is no part of it, because everyone may read command lines."""
    return [
        str(server), "--model", str(weights), "--alias", alias, "--host", HOST, "--port", str(port),
        "--parallel", str(sizing.slots), "--ctx-size", str(sizing.slots * sizing.context), "--no-kv-unified",
        "--threads", str(sizing.threads), "--ubatch-size", str(BATCH), "--cache-ram", str(PROMPT_CACHE >> 20),
        "--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off", "--fit", "off",
        "--metrics", "--no-ui", "--offline", "--log-verbosity", "2",
    ]  # fmt: skip


async def launch(server: Path, weights: Path, alias: str, sizing: Sizing) -> tuple[Program, Address]:
    """Start a server and return it with its address; raises ToolError where it cannot be started."""
    address = Address(_free_port(), secrets.token_urlsafe(24))
    argv = arguments(server, weights, alias, sizing, address.port)
    return await beside.start(argv, hint=_HINT, env={KEY_VARIABLE: address.key}), address


class Engine:
    """The questions a node asks a server; each raises ToolError where there is no proper answer."""

    def __init__(self, session: aiohttp.ClientSession, address: Address) -> None:
        """Ask a server at an address through an open session."""
        self._session, self._address = session, address

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
                    raise ToolError(f"llama-server answers {path} with {answer.status}: {found}", hint=_HINT)
                return found
        except (aiohttp.ClientError, ValueError, TimeoutError) as e:
            raise ToolError(f"llama-server does not answer {path}: {e or type(e).__name__}", hint=_HINT) from e

    async def queue(self) -> tuple[int, int] | None:
        """Return how many requests it decodes and how many wait, by its own count; None where it does not say."""
        try:
            async with self._session.get(
                f"{self._address.url}/metrics", headers=self._address.headers, timeout=aiohttp.ClientTimeout(5)
            ) as answer:
                figures = _figures(await answer.text())
        except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError):
            return None
        busy, waiting = figures.get("llamacpp:requests_processing"), figures.get("llamacpp:requests_deferred")
        return None if busy is None or waiting is None else (busy, waiting)


async def until_healthy(engine: Engine, program: Program, pause_s: float = 0.1) -> None:
    """Wait until a server answers that its model is loaded, or its program is gone."""
    while program.running and not await engine.healthy():
        await asyncio.sleep(pause_s)


def _figures(text: str) -> dict[str, int]:
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name.startswith("llamacpp:requests_") and value.strip().isdecimal():
            found[name] = int(value)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
