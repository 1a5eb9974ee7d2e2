"""Runs the pods of the StatefulSet `node` as processes of this machine: what a kubelet does where pods are real.

The fake kubelet marks pods Ready by an annotation; here it follows the process's own /readyz. A pod's arguments are those
of the cluster; where they name places inside a container, places of this machine stand for them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.deploy.render import RELEASES, RELEASES_FILE
from pipeline.errors import PipelineError
from pipeline.ports.kube import CONFIG_MAP, POD, Cluster, Object, note
from tests.support.llama_server import free_port

ROOT = Path(__file__).parents[2]
READY = "fake-kubelet/ready-after"
NEVER = "999999"  # seconds
_THERE = ("--release=", "--manifest=", "--variant=", "--slots=", "--context=")


@dataclass
class Running:
    """A pod's process."""

    uid: str
    process: subprocess.Popen[bytes]
    ready: bool = False


@dataclass
class Kubelet:
    """The machines: `flags` are what every process is told of this machine; `released` is where gateways' list is put."""

    cluster: Cluster
    namespace: str
    root: Path
    flags: tuple[str, ...]
    released: Path
    count: int
    ports: list[int] = field(default_factory=list)
    health: list[int] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    _running: dict[str, Running] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.ports = [free_port() for _ in range(self.count)]
        self.health = [free_port() for _ in range(self.count)]

    def start(self) -> None:
        """Begin to follow the cluster."""
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End every process."""
        self._ended.set()
        if self._thread:
            self._thread.join()
        for name in list(self._running):
            self._end(name, kill=True)

    def _follow(self) -> None:
        while not self._ended.wait(0.2):
            try:
                self._list()
                self._sync()
            except PipelineError as e:  # the API server is busy: a kubelet tries again
                print(e, file=sys.stderr)

    def _list(self) -> None:
        """Mount the gateways' list."""
        found = self.cluster.find(CONFIG_MAP, RELEASES, self.namespace)
        text = (found or {"data": {}})["data"].get(RELEASES_FILE)
        if text and (not self.released.exists() or self.released.read_text() != text):
            new = self.released.with_suffix(".new")
            new.write_text(text)
            new.rename(self.released)

    def _sync(self) -> None:
        pods = self.cluster.find_all(POD, self.namespace, labels="app.kubernetes.io/name=node")
        wanted = {
            p["metadata"]["name"]: p
            for p in pods
            if "deletionTimestamp" not in p["metadata"] and p["spec"].get("nodeName")
        }
        for name, running in list(self._running.items()):
            if name not in wanted or wanted[name]["metadata"]["uid"] != running.uid:
                self._end(name)
        for name, pod in wanted.items():
            if name not in self._running:
                self._begin(name, pod)
            self._look(name, pod)

    def _begin(self, name: str, pod: Object) -> None:
        number, home = int(name.rpartition("-")[2]), self.root / name
        home.mkdir(parents=True, exist_ok=True)
        told = [a for a in pod["spec"]["containers"][0]["args"] if a.startswith(_THERE)]
        argv = [
            sys.executable, "-m", "pipeline.cli", "node", "--name", name, "--home", str(home / "home"),
            "--state", str(home / "state.json"), "--port", str(self.ports[number]),
            "--health", f"127.0.0.1:{self.health[number]}", "--drain", "20", "--threads", "1", "--poll", "0.5",
            *self.flags, *told,
        ]  # fmt: skip
        with (home / "log").open("ab") as log:
            program = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log)
        self._running[name] = Running(pod["metadata"]["uid"], program)
        self.started.append(f"{name} {next(a for a in told if a.startswith('--release='))}")

    def _look(self, name: str, pod: Object) -> None:
        running, number = self._running[name], int(name.rpartition("-")[2])
        ready = running.process.poll() is None and _answers(self.health[number])
        notes = pod["metadata"].get("annotations") or {}
        if ready is not (notes.get(READY) == "0"):
            self.cluster.patch(POD, name, self.namespace, note({READY: "0" if ready else NEVER}))

    def _end(self, name: str, *, kill: bool = False) -> None:
        running = self._running.pop(name)
        running.process.kill() if kill else running.process.terminate()
        try:
            running.process.wait(60)
        except subprocess.TimeoutExpired:
            running.process.kill()
            running.process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def gateway(
    root: Path, ports: list[int], released: Path, flags: tuple[str, ...]
) -> tuple[subprocess.Popen[bytes], int]:
    """Start a gateway before the processes; return it and its port."""
    port, config = free_port(), root / "gateway.yaml"
    entries = [{"name": f"node-{i}", "url": f"http://127.0.0.1:{p}", "pool": "edge"} for i, p in enumerate(ports)]
    policy = {"cpu": 1.0, "queue_wait_ms": 20000.0}  # all share this machine's processors
    config.write_text(json.dumps({"endpoints": entries, "policy": policy, "poll_s": 0.3, "release_s": 1.0}))
    argv = [
        sys.executable, "-m", "pipeline.cli", "gateway", "--config", str(config), "--port", str(port), "--quiet",
        "--releases", str(released), "--state", str(root / "gateway.json"), *flags,
    ]  # fmt: skip
    with (root / "gateway.log").open("ab") as log:
        return subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log, env={**os.environ}), port
