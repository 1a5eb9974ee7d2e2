"""Two nodes, a large server and a gateway, as users start them, for a benchmark to break."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline.catalog.names import Target
from pipeline.peers.role import Role
from pipeline.serving import certs
from tests.bench.delays import Delays
from tests.support import pki, served
from tests.support.llama_server import free_port
from tests.support.nodes import ROOT, NodeProcess
from tests.support.served import Made, MadeLarge, Shop

NODES, LARGE = ("pi-1", "pi-2"), "gpu-1"
SERVERS = (*NODES, LARGE)
# All processes share the machine's processors: their load, and waits made by it, say nothing of one server.
POLICY = {"cpu": 1.0, "queue_wait_ms": 2000.0}
_ROLES = {**dict.fromkeys(NODES, Role.NODE), LARGE: Role.LARGE, "gateway": Role.GATEWAY}


@dataclass
class Models:
    """The demo teacher as the models of three releases, the last of which will be refused, and as a large one."""

    small: Sequence[Made]
    large: MadeLarge

    @classmethod
    def make(cls, root: Path) -> Models:
        small = [served.teacher(root / kind, kind) for kind in ("f32", "bf16", "f16")]
        return cls(small, served.teacher_large(root / "large"))


@dataclass
class Rig:
    """The processes; `delay_s` is how long each piece takes to and from pi-1 and the large server, with `delays`."""

    root: Path
    models: Models
    tls: bool = False
    delays: bool = False
    delay_s: float = 0.0
    servers: dict[str, NodeProcess] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    gateway: subprocess.Popen[bytes] | None = None
    _authority: certs.Pair = field(default_factory=pki.authority)

    def __post_init__(self) -> None:
        self.shop: Shop = served.shop(self.root / "shop")
        self.publish(1, self.models.small[0])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def publish(self, version: int, small: Made, **options: Any) -> None:
        """Publish a release with the small model for every target, so that the gateway counts tokens by it."""
        data = small.gguf.read_bytes()
        more = {f"tiny-edge-{target}/model.gguf": data for target in Target}
        self.shop.publish(version, small, large=self.models.large, more=more, **options)

    def publish_next(self) -> None:
        """Publish a release with another small model."""
        self.publish(2, self.models.small[1])

    def publish_bad(self) -> None:
        """Publish a release whose small model does not answer as its evidence says."""
        small = self.models.small[2]
        prompt, *_ = small.answers
        self.publish(2, small, answers={**small.answers, prompt: [5, 6, 7]})

    def issue(self) -> None:
        """Issue everyone's certificate anew."""
        for name, role in _ROLES.items():
            pki.folder(self.root / "pki" / name, self._authority, role)

    async def open(self) -> None:
        """Start everything and wait until requests may go to every server."""
        if self.tls:
            self.issue()
        for name in SERVERS:
            command = "serve-large" if name == LARGE else "node"
            self.servers[name] = NodeProcess(self.shop, self.root / name, command=command)
            self.start(name)
        ports = {name: self.servers[name].port for name in SERVERS}
        if self.delays:
            for name in (NODES[0], LARGE):
                ports[name] = await Delays(ports[name], lambda: self.delay_s).start()
        self._start_gateway(ports)
        await self.until_usable(*SERVERS)

    def start(self, name: str) -> None:
        """Start a server, for the first time or again."""
        own = ["--engine", "transformers", "--slots", "8"] if name == LARGE else ["--slots", "4"]
        secured = ["--tls", str(self.root / "pki" / name), "--host", "127.0.0.1"] if self.tls else []
        self.servers[name].start(*own, "--name", name, *secured)

    async def until_usable(self, *names: str, patience_s: float = 300.0) -> None:
        """Wait until the gateway would ask all of the servers."""
        end, usable = time.monotonic() + patience_s, set[str]()
        while not set(names) <= usable:
            assert time.monotonic() < end, f"{names} are not usable: {await asyncio.to_thread(self._get, '/status')!r}"
            await asyncio.sleep(0.5)
            pools = json.loads(await asyncio.to_thread(self._get, "/status") or b'{"pools": []}')["pools"]
            usable = {e["name"] for pool in pools for e in pool["endpoints"] if e["usable"]}

    async def metrics(self) -> dict[str, float]:
        """Return the gateway's samples by name and labels."""
        text = (await asyncio.to_thread(self._get, "/metrics")).decode()
        return {n: float(v) for n, v in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}

    def memory_mib(self) -> float:
        """Return the gateway's resident memory."""
        assert self.gateway is not None
        resident: int = psutil.Process(self.gateway.pid).memory_info().rss
        return resident / 2**20

    def close(self) -> None:
        """End everything."""
        if self.gateway is not None:
            self.gateway.kill()
            self.gateway.wait()
        for server in self.servers.values():
            server.kill()

    def _start_gateway(self, ports: dict[str, int]) -> None:
        scheme = "https" if self.tls else "http"
        entries = [
            {"name": n, "url": f"{scheme}://127.0.0.1:{ports[n]}", "pool": "nvlink" if n == LARGE else "edge"}
            for n in SERVERS
        ]
        config = self.root / "gateway.yaml"
        config.write_text(json.dumps({"endpoints": entries, "policy": POLICY}))
        secured = ["--tls", str(self.root / "pki" / "gateway")] if self.tls else []
        argv = [
            sys.executable, "-m", "pipeline.cli", "gateway", "--config", str(config), "--port", str(self.port),
            "--registry", str(self.shop.registry), "--trust", str(self.shop.trust), "--quiet",
            "--state", str(self.root / "gateway.json"), *secured,
        ]  # fmt: skip
        with (self.root / "gateway.log").open("wb") as log:
            self.gateway = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log)

    def _get(self, path: str) -> bytes:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                found: bytes = answer.read()
                return found
        except OSError:
            return b""
