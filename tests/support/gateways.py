"""A gateway in this process between scripted servers on sockets and a client that speaks ASGI."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.manifest.encoding import sha256
from pipeline.peers.status import Pool
from pipeline.serving.gateway import wire
from pipeline.serving.gateway.app import App
from pipeline.serving.gateway.callers import Callers
from pipeline.serving.gateway.gateway import Gateway
from pipeline.serving.gateway.settings import EndpointEntry, Settings
from pipeline.serving.gateway.tracing import Off, Tracing
from pipeline.serving.gateway.watcher import Parts, Watcher
from tests.support.prometheus import exposed
from tests.support.scenes import Scene
from tests.support.upstreams import Behaviour, Upstream

SHARDS = b"{}"
TINY, LARGE = "tiny-edge-arm64", "large-x86_64"
CHAT = "/v1/chat/completions"
QUICK = {"connect_s": 2.0, "first_s": 2.0, "chunk_s": 2.0, "ready_s": 0.0, "wait_s": 1.0}


@dataclass
class Reply:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """A stream's events, without its end."""
        found = [line[6:] for line in self.body.decode().split("\n\n") if line.startswith("data: {")]
        return [json.loads(line) for line in found]

    @property
    def text(self) -> str:
        """The text of a streamed chat."""
        deltas = [c["delta"].get("content") or "" for chunk in self.chunks for c in chunk.get("choices", [])]
        return "".join(deltas)

    @property
    def is_whole(self) -> bool:
        return self.body.endswith(b"data: [DONE]\n\n")


def chat(content: str = "hi", **fields: Any) -> dict[str, Any]:
    """Return a chat's body."""
    return {"model": "auto", "messages": [{"role": "user", "content": content}], **fields}


@dataclass
class Running:
    """A started gateway with its servers and journal."""

    app: App
    gateway: Gateway
    servers: dict[str, Upstream]
    scene: Scene
    lines: list[dict[str, Any]] = field(default_factory=list)

    async def ask(
        self,
        body: Any,
        path: str = CHAT,
        headers: dict[str, str] | None = None,
        *,
        leave: asyncio.Event | None = None,
        got: Callable[[bytes], None] = lambda _: None,
        method: str = "POST",
        stuck: asyncio.Event | None = None,
    ) -> Reply:
        """Send one request; a client leaves when `leave` is set. One that takes nothing sets `stuck` when something comes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()], "http_version": "1.1",
            "scheme": "http", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "root_path": "", "asgi": {"version": "3.0"},
            wire.CONNECTED: (connected := wire.Connected()),
        }  # fmt: skip
        sent: list[dict[str, Any]] = []
        given = iter([{"type": "http.request", "body": data, "more_body": False}])

        async def receive() -> dict[str, Any]:
            for message in given:
                return message
            await asyncio.Event().wait()
            raise AssertionError("nobody waits for a client that leaves")

        async def leaves() -> None:
            await (leave or asyncio.Event()).wait()
            connected.lost()

        async def send(message: Any) -> None:
            sent.append(message)
            got(message.get("body", b""))
            if stuck is not None:
                stuck.set()
                await asyncio.Event().wait()

        leaving = asyncio.create_task(leaves())
        try:
            await self.app(scope, receive, send)
        finally:
            leaving.cancel()
        start = next((m for m in sent if m["type"] == "http.response.start"), {"status": 0, "headers": []})
        found = {k.decode(): v.decode() for k, v in start["headers"]}
        return Reply(start["status"], found, b"".join(m.get("body", b"") for m in sent))

    async def metrics(self) -> dict[str, float]:
        """Return every sample by its name and labels."""
        return exposed((await self.ask(b"", "/metrics", method="GET")).body)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds."""
        await until(holds)


@dataclass
class Site:
    """A release, scripted servers that claim to serve it, and what a gateway or picker before them is made of."""

    parts: Parts
    servers: dict[str, Upstream]
    scene: Scene
    lines: list[dict[str, Any]]


@asynccontextmanager
async def site(
    root: Path,
    edge: dict[str, Behaviour] | None = None,
    nvlink: dict[str, Behaviour] | None = None,
    *,
    keys: Path | None = None,
    status: dict[str, dict[str, Any]] | None = None,
    **settings: Any,
) -> AsyncIterator[Site]:
    """Yield a site with a server for each behaviour."""
    scene = Scene(root)
    scene.publish(1, files={f"{LARGE}/shards.json": SHARDS}, valid_days=36500)
    digest = sha256((root / f"release-1/{TINY}/model.gguf").read_bytes())
    servers = {n: Upstream(Pool.EDGE, TINY, digest, b) for n, b in (edge or {}).items()}
    servers |= {n: Upstream(Pool.NVLINK, LARGE, sha256(SHARDS), b) for n, b in (nvlink or {}).items()}
    for name, server in servers.items():
        server.status = (status or {}).get(name, {})
        await server.start()
    entries = [EndpointEntry(name=n, url=s.url, pool=s.pool) for n, s in servers.items()]
    usual: dict[str, Any] = {"limits": QUICK, "poll_s": 0.05, "release_s": 0.2}
    made = Settings.model_validate({**usual, **settings, "endpoints": entries})
    lines: list[dict[str, Any]] = []
    numbers = count()
    parts = Parts(
        settings=made,
        source=scene.source,
        callers=Callers(keys, time.monotonic),
        write=lambda line: lines.append(json.loads(line)),
        flush=lambda: None,
        clock=time.monotonic,
        new_id=lambda: f"r{next(numbers)}",
    )
    parts.callers.reload()
    try:
        yield Site(parts, servers, scene, lines)
    finally:
        for server in servers.values():
            await server.stop()


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


async def until_known(watcher: Watcher) -> None:
    """Wait until every endpoint was heard of, and the release."""
    await until(lambda: watcher.counts and all(not m.missed for m in watcher.fleet.members.values()))


@asynccontextmanager
async def running(
    root: Path,
    edge: dict[str, Behaviour] | None = None,
    nvlink: dict[str, Behaviour] | None = None,
    *,
    tracing: Tracing | None = None,
    **given: Any,
) -> AsyncIterator[Running]:
    """Yield a gateway that has heard of its servers; `given` goes to `site`."""
    async with site(root, edge, nvlink, **given) as at:
        gateway = Gateway(at.parts, tracing=tracing or Off())
        app = App(gateway)
        await gateway.start()
        try:
            await until_known(gateway)
            yield Running(app, gateway, at.servers, at.scene, at.lines)
        finally:
            await gateway.stop()
