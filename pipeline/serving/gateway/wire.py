"""A request's body within its bounds, an answer as a stream of events, and the watch for a client that leaves.

Rules: a body is read within its bounds and time; nothing is sent after a client left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import chain

from pipeline.peers.asgi import Headers, Message, Receive, Send
from pipeline.serving.gateway.problems import Problem
from pipeline.serving.gateway.settings import Limits

_EVENTS: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx passes events on at once
)


CONNECTED = "edge.connected"  # the key in a scope


class ClientLeftError(Exception):
    """The client closed its connection."""


class Connected:
    """A client's connection: who works for it is told when it is gone. The server puts it into each request's scope.

    `said_all` says that every request it sent so far is there with its whole body.
    """

    __slots__ = ("gone", "said_all", "tell")

    def __init__(self) -> None:
        self.gone = self.said_all = False
        self.tell: Callable[[], None] | None = None

    def lost(self) -> None:
        """Take note that the connection was closed."""
        self.gone = True
        if self.tell is not None:
            self.tell()


async def read_body(receive: Receive, headers: dict[bytes, bytes], limits: Limits, client: Connected) -> bytes:
    """Return a request's body; raises Problem where it is too large or slow, ClientLeftError where it never ends."""
    check_length(headers.get(b"content-length"), limits)
    message = _heard(await receive()) if client.said_all else await _next(receive, limits.body_s)
    body = bytearray(message.get("body", b""))
    if message.get("more_body"):
        time = asyncio.get_running_loop().time
        deadline = time() + limits.body_s
        while message.get("more_body"):
            bounded(body, limits)
            message = await _next(receive, deadline - time())
            body += message.get("body", b"")
    return bytes(bounded(body, limits))


async def _next(receive: Receive, patience_s: float) -> Message:
    try:
        async with asyncio.timeout(patience_s):
            return _heard(await receive())
    except TimeoutError as e:
        raise Problem(408, "slow_body", "the body did not come in time") from e


def _heard(message: Message) -> Message:
    if message["type"] == "http.disconnect":
        raise ClientLeftError
    return message


def check_length(length: bytes | None, limits: Limits) -> None:
    """Raise Problem where a body is announced as too large."""
    if length is not None and length.isdigit() and int(length) > limits.body_bytes:
        raise _too_large(limits)


def bounded(body: bytearray, limits: Limits) -> bytearray:
    """Return a body, or the part of it that is there; raises Problem where it is too large."""
    if len(body) > limits.body_bytes:
        raise _too_large(limits)
    return body


def _too_large(limits: Limits) -> Problem:
    return Problem(413, "body_too_large", f"a body has at most {limits.body_bytes} bytes")


def by_name(headers: Headers) -> dict[bytes, bytes]:
    """Return headers by their names; one that comes several times is a list, as HTTP has it (RFC 9110, 5.3)."""
    found = dict(headers)
    if len(found) == len(headers):
        return found
    return {name: b",".join(value for other, value in headers if other == name) for name in found}


def check_headers(headers: Headers, limits: Limits) -> None:
    """Raise Problem where a request's headers are too large."""
    if sum(map(len, chain.from_iterable(headers))) > limits.header_bytes:
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


async def while_connected(client: Connected, work: Callable[[], Awaitable[None]], limit_s: float) -> None:
    """Do work until it is done, the client is gone or time is up; raises ClientLeftError or TimeoutError.

    A client that leaves is heard of from its connection: a task that waits for ASGI's `http.disconnect` would cost as
    much as the decision.
    """
    if client.gone:
        raise ClientLeftError
    task = asyncio.current_task()
    assert task is not None, "a request is handled in a task"
    why: type[Exception] | None = None

    def end(found: type[Exception]) -> None:
        nonlocal why
        why = why or found
        task.cancel()

    client.tell = partial(end, ClientLeftError)
    timer = asyncio.get_running_loop().call_later(limit_s, end, TimeoutError)
    try:
        await work()
    except asyncio.CancelledError:
        if why is not None and not task.uncancel():
            raise why from None
        raise
    finally:
        timer.cancel()
        client.tell = None
