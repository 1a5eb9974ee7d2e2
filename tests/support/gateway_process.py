"""The gateway's own process as users start it, between scripted servers and clients with certificates of a lab."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from pipeline.manifest.encoding import sha256
from pipeline.peers import tls
from pipeline.peers.role import Role
from pipeline.peers.status import Pool
from pipeline.serving import certs
from tests.support import pki
from tests.support.gateways import LARGE, SHARDS, TINY, chat
from tests.support.llama_server import free_port
from tests.support.releases import LINE
from tests.support.scenes import Scene
from tests.support.upstreams import Behaviour, Upstream

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0


@dataclass
class GatewayProcess:
    """A gateway with its servers and authority; `own` is the folder of its certificate."""

    root: Path
    servers: dict[str, Upstream]
    session: aiohttp.ClientSession
    authority: certs.Pair = field(default_factory=pki.authority)
    port: int = field(default_factory=free_port)
    admin_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def own(self) -> Path:
        folder = self.root / "pki/gateway"
        return folder if folder.exists() else self.renew()

    def renew(self) -> Path:
        """Issue a certificate to the gateway, over the one it has."""
        return pki.folder(self.root / "pki/gateway", self.authority, Role.GATEWAY)

    def public(self, authority: certs.Pair | None = None) -> ssl.SSLContext:
        """Return the context of a client that believes an authority and shows no certificate."""
        return ssl.create_default_context(cadata=(authority or self.authority).pem.decode())

    def caller(self, *roles: Role, authority: certs.Pair | None = None) -> ssl.SSLContext:
        """Return the context of a client with a certificate, which believes the gateway's authority."""
        folder = pki.folder(self.root / "pki" / "-".join(["as", *roles]), authority or self.authority, *roles)
        (folder / tls.CA_FILE).write_bytes(self.authority.pem)
        return tls.client_context(folder, [Role.GATEWAY])

    @property
    def log(self) -> str:
        return (self.root / "log").read_text()

    def launch(self, *flags: str, **settings: Any) -> subprocess.Popen[bytes]:
        """Start the process without waiting for it."""
        endpoints = [{"name": n, "url": s.url, "pool": str(s.pool)} for n, s in self.servers.items()]
        config = self.root / "gateway.yaml"
        config.write_text(yaml.safe_dump({"endpoints": endpoints, "poll_s": 0.1, **settings}))
        argv = [
            sys.executable, "-c", "import sys; from pipeline.cli import main; sys.exit(main())", "gateway", "--quiet",
            "--config", str(config), "--registry", str(self.root / "registry"), "--trust", str(self.root / "trust.yaml"),
            "--state", str(self.root / "state.json"), "--port", str(self.port), *flags,
        ]  # fmt: skip
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(
                argv, cwd=self.root, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=log, stdout=log
            )
        return self.process

    async def start(self, *flags: str, context: ssl.SSLContext | bool = True, **settings: Any) -> None:
        """Start the process and wait until it is ready."""
        process = self.launch(*flags, **settings)
        async with asyncio.timeout(PATIENCE_S):
            while not await self._ready(context):
                assert process.poll() is None, self.log
                await asyncio.sleep(0.05)

    async def start_with_admin(self, **settings: Any) -> None:
        """Start the process with an admin port and wait until it is ready."""
        await self.start("--tls", str(self.own), "--admin", f"127.0.0.1:{self.admin_port}", **settings)

    async def _ready(self, context: ssl.SSLContext | bool) -> bool:
        scheme = "http" if context is True else "https"
        try:
            async with self.session.get(f"{scheme}://localhost:{self.port}/readyz", ssl=context) as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def admin(self, who: ssl.SSLContext, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Ask the admin port; return the status and what was answered."""
        url = f"https://localhost:{self.admin_port}{path}"
        given = {"data": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
        async with self.session.request(method, url, ssl=who, **given) as answer:
            kind = answer.content_type
            return answer.status, await (answer.json() if kind == "application/json" else answer.text())

    async def went(self, content: str = "hi", **fields: Any) -> tuple[str, str]:
        """Ask for a completion; return the endpoint that answered and the reason."""
        url = f"http://localhost:{self.port}/v1/chat/completions"
        async with self.session.post(url, json=chat(content, **fields)) as answer:
            assert answer.status == 200, await answer.text()
            return answer.headers["x-edge-endpoint"], answer.headers["x-edge-reason"]

    def stop(self) -> None:
        """End the process as systemd does."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S)
            finally:
                self.process.kill()
            self.process = None


@asynccontextmanager
async def site(root: Path, edge: dict[str, Behaviour], nvlink: dict[str, Behaviour]) -> AsyncIterator[GatewayProcess]:
    """Yield a gateway that is not started yet, with a server for each behaviour."""
    scene = Scene(root)
    scene.publish(1, files={f"{LARGE}/shards.json": SHARDS}, valid_days=36500)
    trust = {"line": LINE, "public_keys": [scene.publisher.pair.public_pem.decode()]}
    (root / "trust.yaml").write_text(yaml.safe_dump(trust))
    digest = sha256((root / f"release-1/{TINY}/model.gguf").read_bytes())
    servers = {n: Upstream(Pool.EDGE, TINY, digest, b) for n, b in edge.items()}
    servers |= {n: Upstream(Pool.NVLINK, LARGE, sha256(SHARDS), b) for n, b in nvlink.items()}
    for server in servers.values():
        await server.start()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        made = GatewayProcess(root, servers, session)
        try:
            yield made
        finally:
            await asyncio.to_thread(made.stop)
            for server in servers.values():
                await server.stop()
