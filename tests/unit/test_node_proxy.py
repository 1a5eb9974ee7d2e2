"""The node's proxy and port, between real connections: what passes, what does not, and who is told when one side goes."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pipeline.errors import CatalogError, ToolError
from pipeline.peers import listen
from pipeline.peers.status import Pool, ServerStatus, State
from pipeline.serving.node.app import App
from pipeline.serving.node.engine import Address
from pipeline.serving.node.proxy import GENERATING, MAX_BODY, MOST_OPEN, PATHS, Proxy, Target
from pipeline.serving.node.state import NodeState

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Quiet:
    """A node without anything to tell."""

    state = NodeState()
    engine_queue = None
    gpus = ()

    async def engine_figures(self) -> str:
        return ""

    def status(self) -> ServerStatus:
        return ServerStatus(name="n", pool=Pool.EDGE, state=State.STARTING)


class Bench:
    """A node's port before a server of the test's."""

    def __init__(self, session: aiohttp.ClientSession, base: str, proxy: Proxy) -> None:
        self.session, self.base, self.proxy = session, base, proxy

    async def post(self, path: str, data: Any = b"{}", **more: Any) -> tuple[int, bytes, Any]:
        async with self.session.post(self.base + path, data=data, **more) as answer:
            return answer.status, await answer.read(), answer.headers


@asynccontextmanager
async def bench(handler: Handler | None) -> AsyncIterator[Bench]:
    """Serve a handler behind a node; None: there is no server that is ready."""
    upstream, address = None, None
    if handler is not None:
        application = web.Application(client_max_size=2 * MAX_BODY)
        application.router.add_route("*", "/{path:.*}", handler)
        upstream = web.AppRunner(application)
        await upstream.setup()
        site = web.TCPSite(upstream, "127.0.0.1", 0)
        await site.start()
        address = Address(upstream.addresses[0][1], "secret")
    target = Target(3, address, "d" * 64) if address else None
    async with aiohttp.ClientSession(auto_decompress=False) as up, aiohttp.ClientSession() as down:
        proxy = Proxy(up, lambda: target)
        bound = listen.bind("127.0.0.1", 0, tls=False, insecure=False)
        server = listen.server(App(Quiet(), proxy), None, 1.0)
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        try:
            yield Bench(down, f"http://127.0.0.1:{bound.getsockname()[1]}", proxy)
        finally:
            server.should_exit = True
            await serving
            if upstream is not None:
                await upstream.cleanup()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


def test_a_request_and_its_answer_pass_unchanged() -> None:
    """Body, query and headers go up with the server's key in place of the caller's; the answer says which model."""
    seen: dict[str, Any] = {}

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.update(path=request.path_qs, body=await request.read(), headers=request.headers)
        return web.Response(status=418, body=b"\x00tea", headers={"x-own": "1", "content-encoding": "identity"})

    async def go() -> None:
        async with bench(handler) as b:
            headers = {"authorization": "Bearer mine", "traceparent": "00-1", "te": "trailers"}
            code, body, found = await b.post("/v1/completions?a=%26", b'{"prompt": "x"}', headers=headers)
            assert (code, body, found["x-own"]) == (418, b"\x00tea", "1")
            assert found["x-edge-release-model"] == "d" * 64
            assert (seen["path"], seen["body"]) == ("/v1/completions?a=%26", b'{"prompt": "x"}')
            assert seen["headers"]["authorization"] == "Bearer secret"
            assert seen["headers"]["traceparent"] == "00-1"
            assert "te" not in seen["headers"]
            await until(lambda: b.proxy.in_flight[3] == 0)

    asyncio.run(go())


def test_pieces_pass_as_they_come() -> None:
    """The first piece is with the client before the server made the second one; so are a request's pieces."""
    go_on, got = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        assert await request.content.readany() == b"one"
        got.set()
        assert await request.content.readany() == b"two"
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"data: 1\n\n")
        await go_on.wait()
        await answer.write(b"data: 2\n\n")
        return answer

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        await got.wait()
        yield b"two"

    async def go() -> None:
        async with bench(handler) as b, b.session.post(b.base + "/completion", data=pieces()) as answer:
            assert await answer.content.readany() == b"data: 1\n\n"
            assert b.proxy.generating[3] == 1
            go_on.set()
            assert await answer.read() == b"data: 2\n\n"

    asyncio.run(go())


@pytest.mark.parametrize("begun", [False, True], ids=["before the answer", "within it"])
def test_a_client_that_hangs_up_ends_its_request(begun: bool) -> None:
    """The server sees the connection close, whether or not it began to answer, and nothing stays counted."""
    asked, ended = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        answer = web.StreamResponse()
        if begun:
            await answer.prepare(request)
            await answer.write(b"data: 1\n\n")
        asked.set()
        try:
            while request.transport is not None and not request.transport.is_closing():
                await asyncio.sleep(0.01)
        finally:
            ended.set()
        return answer

    async def go() -> None:
        async with bench(handler) as b:
            work = asyncio.create_task(b.post("/completion"))
            await asked.wait()
            assert b.proxy.in_flight[3] == 1
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await ended.wait()
            await until(lambda: b.proxy.in_flight[3] == 0 == b.proxy.generating[3])

    asyncio.run(go())


def test_a_server_that_dies_before_its_answer_is_a_502() -> None:
    """The client may try elsewhere at once: nothing was answered."""

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async def go() -> None:
        async with bench(handler) as b:
            code, body, headers = await b.post("/completion")
            assert (code, headers["retry-after"]) == (502, "1")
            assert b'"type": "server_error"' in body

    asyncio.run(go())


def test_a_server_that_dies_within_its_answer_breaks_it_off() -> None:
    """Half an answer is not ended as if it were whole."""

    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"data: 1\n\n")
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return answer

    async def go() -> None:
        async with bench(handler) as b:
            with pytest.raises(aiohttp.ClientPayloadError):
                await b.post("/completion")
            await until(lambda: b.proxy.in_flight[3] == 0)

    asyncio.run(go())


def test_what_does_not_belong_here_is_refused() -> None:
    """Other paths, methods and huge bodies never reach the server; without a ready server nothing does."""

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(text="reached")

    async def huge() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b"x" * (MAX_BODY // 8)

    async def go() -> None:
        async with bench(handler) as b:
            for path in (
                "/slots",
                "/props",
                "/lora-adapters",
                "/v1",
                "/v1/completions/",
                "/completion/x",
                "/models/load",
            ):
                assert (await b.post(path))[0] == 404
            assert (await b.post("/status"))[0] == 405
            async with b.session.delete(b.base + "/completion") as answer:
                assert answer.status == 405
            assert (await b.post("/completion", huge()))[0] == 413
            assert (await b.post("/completion", io.BytesIO(b"x" * (MAX_BODY + 1))))[0] == 413
            assert (await b.post("/completion"))[1] == b"reached"
        async with bench(None) as b:
            code, _, headers = await b.post("/completion")
            assert (code, headers["retry-after"]) == (503, "1")
            async with b.session.get(b.base + "/readyz") as answer:
                assert (answer.status, await answer.text()) == (503, "starting: wait\n")
            async with b.session.get(b.base + "/metrics") as answer:
                text = await answer.text()
            assert 'edge_node_state{state="starting"} 1.0' in text
            assert "edge_node_cpu_ratio" not in text  # it was not measured

    asyncio.run(go())


def test_only_so_many_requests_are_open_at_once() -> None:
    """One more than a server can bear is refused at once, and let in when another one is done."""
    go_on = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        await go_on.wait()
        return web.Response(text="done")

    async def go() -> None:
        async with bench(handler) as b:
            open_ = [asyncio.create_task(b.post("/completion")) for _ in range(3)]
            await until(lambda: b.proxy.in_flight[3] == 3)
            b.proxy.in_flight[3] += MOST_OPEN - 3
            assert (await b.post("/completion"))[0] == 503
            b.proxy.in_flight[3] -= MOST_OPEN - 3
            go_on.set()
            assert [(await work)[0] for work in open_] == [200] * 3
            assert (await b.post("/completion"))[0] == 200

    asyncio.run(go())


def test_the_paths_are_known_ones() -> None:
    """No path leads to a server's own settings."""
    assert GENERATING < PATHS
    assert not [path for path in PATHS if path.startswith(("/props", "/slots", "/lora", "/tools", "/cors", "/models"))]


@pytest.mark.parametrize(
    ("host", "tls", "insecure", "open_"),
    [
        pytest.param("127.0.0.1", False, False, True, id="loopback"),
        pytest.param("::1", False, False, True, id="loopback, IPv6"),
        pytest.param("localhost", False, False, True, id="loopback by name"),
        pytest.param("0.0.0.0", False, False, False, id="everywhere"),
        pytest.param("0.0.0.0", True, False, True, id="everywhere with certificates"),
        pytest.param("0.0.0.0", False, True, True, id="everywhere, expressly"),
        pytest.param("example.org", False, False, False, id="another name"),
    ],
)
def test_who_may_listen_where(host: str, tls: bool, insecure: bool, open_: bool) -> None:
    """Without certificates only loopback, unless the user says otherwise."""
    if not open_:
        with pytest.raises(CatalogError, match="open to others"):
            listen.bind(host, 0, tls=tls, insecure=insecure)
        return
    try:
        listen.bind(host, 0, tls=tls, insecure=insecure).close()
    except ToolError as e:
        if host != "::1" or socket.has_ipv6:
            assert host == "::1", e.message


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200), ("HEAD", "/healthz", 200), ("GET", "/readyz", 503), ("GET", "/status", 404),
        ("GET", "/metrics", 404), ("POST", "/v1/completions", 404), ("POST", "/healthz", 404),
    ],
)  # fmt: skip
def test_the_port_for_probes_answers_nothing_else(method: str, path: str, status: int) -> None:
    """It asks for no certificate, so it tells of nothing and asks no model."""

    async def go() -> None:
        async with aiohttp.ClientSession() as session:
            bound = listen.bind("127.0.0.1", 0, tls=False, insecure=False)
            server = listen.server(App(Quiet(), Proxy(session, lambda: None)).health, None, 1.0)
            serving = asyncio.create_task(server.serve(sockets=[bound]))
            url = f"http://127.0.0.1:{bound.getsockname()[1]}{path}"
            try:
                async with session.request(method, url) as answer:
                    assert answer.status == status
            finally:
                server.should_exit = True
                await serving

    asyncio.run(go())
