"""A node as a process of its own, as a user starts it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.peers.status import ServerStatus, State
from tests.support.llama_server import free_port
from tests.support.prometheus import exposed
from tests.support.served import Shop

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds; nothing is measured by it


@dataclass
class NodeProcess:
    """A node for a registry, with a home of its own."""

    shop: Shop
    root: Path
    command: str = "node"
    port: int = field(default_factory=free_port)
    context: ssl.SSLContext | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> NodeProcess:
        """Start it; the same folders serve again."""
        self.root.mkdir(parents=True, exist_ok=True)
        argv = [
            sys.executable, "-c", "import sys; from pipeline.cli import main; sys.exit(main())", self.command,
            "--registry", str(self.shop.registry), "--trust", str(self.shop.trust), "--home", str(self.root / "home"),
            "--state", str(self.root / "state.json"), "--port", str(self.port), "--name", "pi-1", "--poll", "0.5",
            "--threads", "1", "--slots", "2", *arguments,
        ]  # fmt: skip
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, cwd=ROOT, stderr=log, stdout=log)
        return self

    @property
    def log(self) -> str:
        return (self.root / "log").read_text(errors="replace")

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Return the status and body of an answer; raises OSError where there is none."""
        connection = self.connect()
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"content-type": "application/json"} if data else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def connect(self) -> http.client.HTTPConnection:
        if self.context is not None:
            return http.client.HTTPSConnection("localhost", self.port, context=self.context, timeout=PATIENCE)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def status(self) -> ServerStatus:
        return ServerStatus.model_validate_json(self.ask("GET", "/status")[1])

    def metric(self, name: str) -> float | None:
        return exposed(self.ask("GET", "/metrics")[1]).get(name)

    def until(self, holds: Callable[[ServerStatus], bool]) -> ServerStatus:
        """Wait until the node's status is as it must become."""
        end = time.monotonic() + PATIENCE
        seen: object = None
        while time.monotonic() < end:
            assert self.process is not None
            assert self.process.poll() is None, f"the node ended with {self.process.returncode}\n{self.log[-4000:]}"
            try:
                seen = status = self.status()
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
                continue
            if holds(status):
                return status
            time.sleep(0.05)
        raise AssertionError(f"last seen {seen}\n{self.log[-4000:]}")

    def until_serving(self, version: int) -> ServerStatus:
        return self.until(
            lambda s: s.state is State.READY and s.served is not None and s.served.release_version == version
        )

    def until_replaced(self, old: int) -> None:
        """Wait until another server takes requests; what was said before the old one was missed does not count."""
        self.until(lambda _: self.servers not in ([], [old]))
        self.until(lambda s: s.state is State.READY)

    def complete(self, prompt: str = "<|user|>where is the black tea?<|assistant|>", tokens: int = 8) -> list[int]:
        """Return the tokens a prompt is answered with."""
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "return_tokens": True}
        status, data = self.ask("POST", "/completion", body)
        assert status == 200, data
        found: list[int] = json.loads(data)["tokens"]
        return found

    @property
    def servers(self) -> list[int]:
        """The process ids of its llama-servers."""
        assert self.process is not None
        return [pid for pid in _children(self.process.pid) if name(pid) == "llama-server"]

    def kill(self) -> None:
        """Kill the node as a loss of power does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask the node to end and return its status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


def descendants(parent: int) -> list[int]:
    """Return the process ids of a process's children, their children, and so on."""
    found = _children(parent)
    return [*found, *(pid for child in found for pid in descendants(child))]


def arguments(pid: int) -> list[str]:
    """Return the command line of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int) -> None:
    """Wait until a process is gone."""
    end = time.monotonic() + PATIENCE
    while alive(pid):
        assert time.monotonic() < end, f"{pid} is still there"
        time.sleep(0.02)


def kill_process(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
