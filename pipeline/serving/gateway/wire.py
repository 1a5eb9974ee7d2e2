"""A request's body within its bounds, and an answer as a stream of events.

Rules: a body is read within its bounds and time; nothing is sent after a client left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from pipeline.serving.asgi import Headers, Message, Receive, Send
from pipeline.serving.gateway.problems import Problem
from pipeline.serving.gateway.settings import Limits

_EVENTS: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx passes events on at once
)


class ClientLeftError(Exception):
    """The client closed its connection."""


async def read_body(receive: Receive, headers: dict[bytes, bytes], limits: Limits) -> bytes:
    """Return a request's body; raises Problem where it is too large or slow, ClientLeftError where it never ends."""
    _check_length(headers.get(b"content-length"), limits)
    message = await _next(receive, limits.body_s)
    body = bytearray(message.get("body", b""))
    deadline = asyncio.get_running_loop().time() + limits.body_s
    while message.get("more_body"):
        _bounded(body, limits)
        message = await _next(receive, deadline - asyncio.get_running_loop().time())
        body += message.get("body", b"")
    return bytes(_bounded(body, limits))


async def _next(receive: Receive, patience_s: float) -> Message:
    try:
        async with asyncio.timeout(patience_s):
            message = await receive()
    except TimeoutError as e:
        raise Problem(408, "slow_body", "the body did not come in time") from e
    if message["type"] == "http.disconnect":
        raise ClientLeftError
    return message


def _check_length(length: bytes | None, limits: Limits) -> None:
    if length is not None and length.isdigit() and int(length) > limits.body_bytes:
        raise _too_large(limits)


def _bounded(body: bytearray, limits: Limits) -> bytearray:
    if len(body) > limits.body_bytes:
        raise _too_large(limits)
    return body


def _too_large(limits: Limits) -> Problem:
    return Problem(413, "body_too_large", f"a body has at most {limits.body_bytes} bytes")


def check_headers(headers: Headers, limits: Limits) -> None:
    """Raise Problem where a request's headers are too large."""
    if sum(len(name) + len(value) for name, value in headers) > limits.header_bytes:
        raise Problem(431, "headers_too_large", f"headers have at most {limits.header_bytes} bytes")


async def begin_events(send: Send, headers: Headers) -> None:
    """Begin a stream of events."""
    await send({"type": "http.response.start", "status": 200, "headers": [*_EVENTS, *headers]})


async def events(send: Send, block: bytes) -> None:
    """Send whole events."""
    await send({"type": "http.response.body", "body": block, "more_body": True})


async def end(send: Send) -> None:
    """End a stream."""
    await send({"type": "http.response.body", "body": b""})


async def while_connected(receive: Receive, work: Awaitable[None]) -> None:
    """Do work until it is done or the client is gone; raises ClientLeftError."""
    task = asyncio.current_task()
    assert task is not None, "a request is handled in a task"
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        await work
    except asyncio.CancelledError:
        if left and not task.uncancel():
            raise ClientLeftError from None
        raise
    finally:
        watcher.cancel()
