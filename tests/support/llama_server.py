"""A real llama-server with the demo teacher, and a status server that speaks for it, as a node does."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pipeline.catalog.names import Tier
from pipeline.peers.status import Pool, Served, ServerStatus, State
from pipeline.ports import files
from pipeline.stages.convert import convert
from tests.support.projects import DEMO, gguf_tier, project

_UNUSED = {"layers": [0, 1], "ffn": 512, "steps": 1, "batch": 1, "learning_rate": 0.1}
CONTEXT = 256  # tokens a slot


def demo_gguf(root: Path, outtype: str = "f32") -> Path:
    """Return the demo teacher as a GGUF file."""
    settings = gguf_tier(distill=_UNUSED, convert={"outtype": outtype, "pre_tokenizer": "smollm"})
    teacher = {"embedded": {"path": str(DEMO / "teacher"), "digest": files.tree_digest(DEMO / "teacher")}}
    made = project(root, teacher, {"tiny-edge": settings})
    made.model(Tier.TINY_EDGE).parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(DEMO / "teacher", made.model(Tier.TINY_EDGE), dirs_exist_ok=True)
    convert(made, Tier.TINY_EDGE)
    return made.gguf(Tier.TINY_EDGE)


def golden(family: str) -> dict[str, Any]:
    """Return a golden prompt of a family."""
    for line in (DEMO / "golden.jsonl").read_text().splitlines():
        found: dict[str, Any] = json.loads(line)
        if found["family"] == family:
            return found
    raise AssertionError(family)


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def await_http(url: str, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Wait until an address answers 200; raises AssertionError where the process ends first."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert process.poll() is None, f"the process behind {url} ended with {process.returncode}"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"{url} does not answer")


@dataclass
class LlamaServer:
    """One running server; `status` is what it says of itself."""

    program: Path
    model: Path
    pool: Pool
    served: Served
    slots: int = 2
    state: State = State.READY
    thawed: threading.Event = field(default_factory=threading.Event)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        argv = [
            self.program, "--model", self.model, "--host", "127.0.0.1", "--port", self.port, "--threads", 1,
            "--parallel", self.slots, "--ctx-size", CONTEXT * self.slots, "--cache-type-k", "f32", "--cache-type-v", "f32",
            "--flash-attn", "off",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [str(a) for a in argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        self.thawed.set()
        self._status = _StatusServer(self)
        await_http(f"{self.url}/health", self.process)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def status_url(self) -> str:
        return self._status.url

    def kill(self) -> None:
        """End the process as a power cut would; its status goes on to say that it is ready."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def freeze(self) -> None:
        """Stop the process without ending it: connections are taken, nothing is answered, its state neither."""
        self.process.send_signal(signal.SIGSTOP)
        self.thawed.clear()

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)
        self.thawed.set()

    def stop(self) -> None:
        self.thawed.set()
        if self.process.poll() is None:
            self.kill()
        self._status.stop()

    def encoded(self) -> bytes:
        return ServerStatus(
            name=f"llama-{self.port}",
            pool=self.pool,
            state=self.state,
            served=self.served,
            slots=self.slots,
            context=CONTEXT,
        ).encode()


class _StatusServer:
    def __init__(self, server: LlamaServer) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.thawed.wait()
                body = server.encoded()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                with suppress(BrokenPipeError):  # the gateway waited long enough
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/status"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
