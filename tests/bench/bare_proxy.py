"""The least a proxy in Python does: raw ASGI on uvicorn, aiohttp behind it, no decision, no metric. For benchmarks."""

from __future__ import annotations

import sys
from typing import Any

import aiohttp
import uvicorn

_sessions: list[aiohttp.ClientSession] = []


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Pass every request on."""
    if scope["type"] != "http":
        return
    if not _sessions:
        _sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False))
    body = (await receive())["body"]
    async with _sessions[0].request(scope["method"], sys.argv[2] + scope["path"], data=body) as answer:
        head = [(b"content-type", answer.content_type.encode())]
        if answer.content_length is not None:
            head.append((b"content-length", str(answer.content_length).encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": head})
        while piece := await answer.content.readany():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="warning", lifespan="off")  # fmt: skip
