"""Asks gateways, servers and a Prometheus, all at once, each within its time and size.

Rules: whoever does not answer as it must is unknown, and named as a problem; no redirect is followed; certificates are
those of `--tls`, shown to gateways, nodes and large servers alone.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from pydantic_core import from_json

from pipeline.control.settings import Looking

_PIECE = 64 << 10


@dataclass(frozen=True)
class Said:
    """An answer: its status (0 where there was none), its body, and what was wrong."""

    status: int
    body: bytes = b""
    problem: str = ""

    def json(self) -> Any:
        """Return a good answer's document, else None."""
        try:
            return from_json(self.body, allow_inf_nan=False) if self.status == 200 else None
        except ValueError:
            return None

    def text(self) -> str | None:
        """Return a good answer's text, else None."""
        return self.body.decode(errors="replace") if self.status == 200 else None


@dataclass
class Fetch:
    """One client; `problems` are those since `clear`, by address."""

    session: aiohttp.ClientSession
    rules: Looking
    tls: ssl.SSLContext | None = None
    problems: dict[str, str] = field(default_factory=dict)
    _gate: asyncio.Semaphore | None = None

    async def get(
        self, url: str, *, params: Mapping[str, str] | None = None, own: bool = True, name: str | None = None
    ) -> Said:
        """Return what an address says; `own` servers are shown this one's certificate, and show that of `name`."""
        return await self._ask("GET", url, own=own, params=params, server_hostname=name)

    async def put(self, url: str, body: bytes, *, name: str | None = None) -> Said:
        """Return what an address says to a document."""
        return await self._ask("PUT", url, own=True, data=body, server_hostname=name)

    async def _ask(self, method: str, url: str, *, own: bool, **given: Any) -> Said:
        self._gate = self._gate or asyncio.Semaphore(self.rules.at_once)
        given["ssl"] = self.tls if own and self.tls is not None else True
        given["headers"] = {"accept": "application/json, text/plain;q=0.9"}
        try:
            async with (
                self._gate,
                asyncio.timeout(self.rules.answer_s),
                self.session.request(method, url, allow_redirects=False, **given) as answer,
            ):
                said = Said(answer.status, await self._body(answer))
        except TimeoutError:
            said = Said(0, problem=f"no answer within {self.rules.answer_s:g} s")
        except (aiohttp.ClientError, ValueError, OSError) as e:
            said = Said(0, problem=f"{type(e).__name__}: {e}"[:200])
        if said.status != 200:
            self.problems[url] = said.problem or f"status {said.status}"
        return said

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        found = bytearray()
        async for piece in answer.content.iter_chunked(_PIECE):
            found += piece
            if len(found) > self.rules.answer_bytes:
                raise ValueError(f"more than {self.rules.answer_bytes} bytes")
        return bytes(found)
