"""What every ASGI application here shares: its types, a whole answer, and an error in OpenAI's shape."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"
FIGURES = CONTENT_TYPE_LATEST.encode()  # what generate_latest writes


async def answer(send: Send, status: int, body: bytes, headers: Headers = (), *, kind: bytes = JSON) -> None:
    """Send a body of known length, of media type `kind`."""
    fixed = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})


def error(message: str, kind: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """Return the JSON that OpenAI's clients read an error from."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()
