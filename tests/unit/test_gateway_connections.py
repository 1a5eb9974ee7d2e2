"""Connections to servers: which are kept, which are cut, and what counts as the end of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from pipeline.peers.status import Pool
from pipeline.serving.gateway.settings import Limits
from pipeline.serving.gateway.upstream import Client, Fault, Stream, UpstreamError, Whole
from tests.support.upstreams import DONE, Behaviour, Call, Upstream, completion, piece, raw, replies, says

BODY = completion("hello")
LIMITS = Limits(connect_s=2.0, first_s=2.0, chunk_s=2.0)


@asynccontextmanager
async def asked(behave: Behaviour) -> AsyncIterator[tuple[Upstream, Callable[[], Awaitable[Whole]], Client]]:
    """Yield a server, a function that asks it for a whole answer, and the client behind that."""
    server, client = Upstream(Pool.EDGE, "v", "0" * 64, behave), Client(LIMITS)
    await server.start()

    async def ask() -> Whole:
        return await client.whole(f"{server.url}/v1/chat/completions", b'{"model": "m"}', {"x-request-id": "r"})

    try:
        yield server, ask, client
    finally:
        await client.close()
        await server.stop()


def ports(server: Upstream) -> list[int]:
    """The client's port of each request: equal ones came over one connection."""
    return [call.writer.get_extra_info("peername")[1] for call in server.calls]


def head(*lines: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode()


LENGTH = f"content-length: {len(BODY)}"
CHUNKED = b"%x;extension=1\r\n%s\r\n0\r\ntrailer: x\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        pytest.param(head(LENGTH) + BODY, True, id="length"),
        pytest.param(head("Transfer-Encoding: chunked") + CHUNKED, True, id="chunked"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + head(LENGTH) + BODY, True, id="continue"),
        pytest.param(head(LENGTH, "connection: close") + BODY, False, id="says close"),
        pytest.param(head(LENGTH).replace(b"/1.1", b"/1.0") + BODY, False, id="HTTP/1.0"),
        pytest.param(head(LENGTH) + BODY + b"more", False, id="more than asked"),
        pytest.param(head(LENGTH) + BODY + head(LENGTH) + BODY, False, id="two answers"),
    ],
)
def test_only_a_clean_connection_is_used_again(answer: bytes, kept: bool) -> None:
    """Three requests share a connection that carried complete answers and nothing else; any other one is left."""

    async def behave(call: Call) -> None:
        await call.raw(answer)

    async def run() -> None:
        async with asked(behave) as (server, ask, _):
            for _ in range(3):
                assert (await ask()).body == BODY
                await asyncio.sleep(0.01)
            assert len(set(ports(server))) == (1 if kept else 3)

    asyncio.run(run())


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    """What a server sends until it closes is its answer."""

    async def run() -> None:
        async with asked(raw(head("content-type: application/json") + BODY)) as (_, ask, _client):
            assert (await ask()).body == BODY

    asyncio.run(run())


def test_an_answer_may_come_byte_by_byte() -> None:
    """Where the network cuts an answer says nothing."""

    async def behave(call: Call) -> None:
        for byte in head("transfer-encoding: chunked") + CHUNKED:
            await call.raw(bytes([byte]))
            await asyncio.sleep(0)

    async def run() -> None:
        async with asked(behave) as (_, ask, _client):
            assert (await ask()).body == BODY

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        pytest.param(b"", Fault.CLOSED, id="nothing"),
        pytest.param(head(LENGTH) + BODY[:-1], Fault.CLOSED, id="cut body"),
        pytest.param(head("transfer-encoding: chunked") + CHUNKED[:-2], Fault.CLOSED, id="cut trailer"),
        pytest.param(head("content-length: some") + BODY, Fault.GARBAGE, id="no number"),
        pytest.param(head("x: " + "y" * 1_000_000, LENGTH) + BODY, Fault.GARBAGE, id="endless head"),
        pytest.param(head("upgrade: x", "connection: upgrade").replace(b"200", b"101"), Fault.GARBAGE, id="upgrade"),
    ],
)
def test_what_is_no_answer_is_a_fault(answer: bytes, fault: Fault) -> None:
    """Each way of not answering has its name."""

    async def run() -> None:
        async with asked(raw(answer)) as (_, ask, _client):
            with pytest.raises(UpstreamError) as caught:
                await ask()
            assert caught.value.fault is fault

    asyncio.run(run())


def test_a_kept_connection_that_the_server_closed_is_not_used() -> None:
    """A server that drops idle connections loses no request."""

    async def run() -> None:
        async with asked(says("hello")) as (server, ask, _):
            await ask()
            server.calls[0].writer.close()
            await server.calls[0].writer.wait_closed()
            await asyncio.sleep(0.01)
            await ask()
            assert len(set(ports(server))) == 2

    asyncio.run(run())


def test_every_address_of_a_host_is_tried() -> None:
    """A name with an address at which nothing listens is reached at its next one."""

    async def run() -> None:
        async with asked(says("hello")) as (server, ask, _):
            server.url = server.url.replace("127.0.0.1", "localhost")
            assert (await ask()).status == 200

    asyncio.run(run())


@pytest.mark.parametrize("ends", [pytest.param(True, id="ends"), pytest.param(False, id="goes on")])
def test_a_stream_left_after_its_end_keeps_its_connection(ends: bool) -> None:
    """The last bytes of a stream may come after its last event; a server that sends others is cut off."""

    async def behave(call: Call) -> None:
        await call.begin()
        await call.chunk(piece("a") + DONE)
        await asyncio.sleep(0.02)
        await call.raw(b"0\r\n\r\n" if ends else b"no chunk")

    async def run() -> None:
        async with asked(behave) as (server, _, client):
            for _ in range(2):
                stream = await client.stream(f"{server.url}/v1/chat/completions", b"{}", {})
                assert isinstance(stream, Stream)
                assert await stream.first() == piece("a") + DONE
                stream.close()
                await asyncio.sleep(0.1)
            assert len(set(ports(server))) == (1 if ends else 2)

    asyncio.run(run())


def test_a_slow_reader_holds_the_server_up() -> None:
    """What a server sends ahead of its reader is bounded."""
    sent = 0

    async def behave(call: Call) -> None:
        nonlocal sent
        await call.begin()
        for _ in range(1000):
            await call.chunk(piece("x" * 100_000))
            sent += 100_000

    async def run() -> None:
        async with asked(behave) as (server, _, client):
            stream = await client.stream(f"{server.url}/v1/chat/completions", b"{}", {})
            assert isinstance(stream, Stream)
            before = -1
            while before < sent:
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 50_000_000
            assert (await stream.first()).startswith(b"data: ")
            assert (await stream.more()).startswith(b"data: ")
            stream.close()

    asyncio.run(run())


def test_redirects_are_not_followed() -> None:
    """An endpoint cannot send requests elsewhere."""

    async def run() -> None:
        async with asked(replies(302, b"{}")) as (server, ask, _):
            with pytest.raises(UpstreamError, match="302"):
                await ask()
            assert len(server.calls) == 1

    asyncio.run(run())
