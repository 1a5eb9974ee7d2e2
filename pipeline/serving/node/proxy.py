"""From the node's port to the server that is ready: a raw ASGI reverse proxy.

Rules: bodies pass in pieces, nothing is collected; a client that hangs up ends its request at the server; only the
paths that answer are passed on, by their exact names, and only so many requests at once; headers of one hop, and
whoever's credentials, end here. A server that fails before its answer began is a 502 in OpenAI's shape; one that fails
within an answer breaks it off, so that nobody takes half an answer for a whole one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import aiohttp
from yarl import URL

from pipeline.peers.asgi import Headers, Receive, Scope, Send, answer, error
from pipeline.serving.node.engine import Address

GENERATING = frozenset(
    {
        "/completion", "/completions", "/chat/completions", "/infill", "/v1/completions", "/v1/chat/completions",
        "/v1/responses", "/v1/messages",
    }
)  # fmt: skip
OTHERS = frozenset(
    {
        "/tokenize", "/detokenize", "/apply-template", "/v1/models", "/embedding", "/embeddings", "/v1/embeddings",
        "/v1/chat/completions/input_tokens", "/v1/messages/count_tokens",
    }
)  # fmt: skip
PATHS = GENERATING | OTHERS
METHODS = frozenset({"GET", "POST"})
MAX_BODY = 8 << 20  # bytes
MOST_OPEN = 256  # requests; each takes llama-server a thread
MODEL_HEADER = b"x-edge-release-model"
_ONE_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
        b"transfer-encoding", b"upgrade", b"expect",
    }
)  # fmt: skip
_NOT_UP = _ONE_HOP | {b"host", b"authorization", b"content-length"}
_NOT_DOWN = _ONE_HOP | {b"server", b"date", b"access-control-allow-origin"}
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5)


@dataclass(frozen=True)
class Target:
    """The server that takes requests, and the digest of its model."""

    number: int
    address: Address
    model_sha256: str


class TooLargeError(Exception):
    """A body has more bytes than are passed on."""


class Proxy:
    """The ASGI application; `in_flight` and `generating` count requests by the number of their server."""

    def __init__(self, session: aiohttp.ClientSession, target: Callable[[], Target | None]) -> None:
        """Pass requests on through an open session that does not decompress."""
        self._session, self._target = session, target
        self.in_flight: Counter[int] = Counter()
        self.generating: Counter[int] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = self._target()
        if target is None:
            await refuse(send, 503, "the node is not ready", headers=[(b"retry-after", b"1")])
            return
        if scope["method"] not in METHODS:
            await refuse(send, 405, "use GET or POST")
            return
        if self.in_flight[target.number] >= MOST_OPEN:
            await refuse(send, 503, "too many requests are open", headers=[(b"retry-after", b"1")])
            return
        generates = scope["path"] in GENERATING
        self.in_flight[target.number] += 1
        self.generating[target.number] += generates
        try:
            await self._pass_on(target, scope, _Body(receive), send)
        finally:
            self.in_flight[target.number] -= 1
            self.generating[target.number] -= generates

    async def _pass_on(self, target: Target, scope: Scope, body: _Body, send: Send) -> None:
        work = asyncio.ensure_future(self._relay(target, scope, body, send))
        gone = asyncio.ensure_future(body.hung_up())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _relay(self, target: Target, scope: Scope, body: _Body, send: Send) -> None:
        began = False
        try:
            async with self._session.request(
                scope["method"], _url(target.address, scope), data=await body.first(), timeout=_TIMEOUT,
                headers=_up(scope, target.address), allow_redirects=False,
            ) as answer:  # fmt: skip
                began = True
                headers = [(k.lower(), v) for k, v in answer.raw_headers if k.lower() not in _NOT_DOWN]
                headers.append((MODEL_HEADER, target.model_sha256.encode()))
                await send({"type": "http.response.start", "status": answer.status, "headers": headers})
                async for piece in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (TooLargeError, aiohttp.ClientError, ConnectionError, TimeoutError) as e:
            if began:
                raise
            if body.too_large:
                await refuse(send, 413, f"a request may have {MAX_BODY >> 20} MiB")
                return
            why = f"the model's server went away: {type(e).__name__}"
            await refuse(send, 502, why, headers=[(b"retry-after", b"1")])


class _Body:
    """A request's body as it comes, and after it the news that the client hung up."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read = asyncio.Event()
        self._size = 0

    @property
    def too_large(self) -> bool:
        """Whether more came than is passed on; whoever reads the pieces may hide the error behind its own."""
        return self._size > MAX_BODY

    async def first(self) -> bytes | AsyncIterator[bytes] | None:
        """Return the whole body where it came in one piece, else its pieces as they come."""
        piece, more = await self._next()
        return self._pieces(piece) if more else piece or None

    async def hung_up(self) -> None:
        """Return when the client hangs up; it is told of only behind the body."""
        await self._read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _pieces(self, piece: bytes) -> AsyncIterator[bytes]:
        more = True
        yield piece
        while more:
            piece, more = await self._next()
            yield piece

    async def _next(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the client hung up")
        piece, more = message.get("body", b""), message.get("more_body", False)
        self._size += len(piece)
        if self.too_large:
            raise TooLargeError
        if not more:
            self._read.set()
        return piece, more


async def refuse(send: Send, status: int, message: str, headers: Headers = ()) -> None:
    """Answer with an error."""
    await answer(send, status, error(message, "invalid_request_error" if status < 500 else "server_error"), headers)


def _url(address: Address, scope: Scope) -> URL:
    query = scope.get("query_string", b"").decode("ascii", errors="ignore")
    return URL(f"{address.url}{scope['path']}" + (f"?{query}" if query else ""), encoded=True)


def _up(scope: Scope, address: Address) -> list[tuple[str, str]]:
    kept = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"] if k.lower() not in _NOT_UP]
    return [*kept, *address.headers.items()]
