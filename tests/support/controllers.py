"""The controller's own process as users start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.control.log import Round, read
from tests.support.llama_server import free_port

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
QUICK = {
    "looking": {"round_s": 1.0, "rate_s": 1.0, "answer_s": 5.0},
    "routing": {"confirm_s": 0.0, "pause_s": 1.0},
    "acting": {"lease_s": 3.0},
}


@dataclass
class ControllerProcess:
    """A controller in a folder of its own."""

    root: Path
    name: str = "controller-1"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def log(self) -> str:
        return (self.root / f"{self.name}.log").read_text()

    @property
    def decisions(self) -> Path:
        return self.folder / "decisions.jsonl"

    @property
    def rounds(self) -> list[Round]:
        return [found for _, _, found in read(self.decisions)] if self.decisions.exists() else []

    def argv(self, *flags: str, **settings: Any) -> list[str]:
        """Return how it is started, with settings over the quick ones."""
        config = self.root / f"{self.name}.yaml"
        config.write_text(yaml.safe_dump({**QUICK, **settings}))
        return [
            sys.executable, "-m", "pipeline.cli", "controller", "--config", str(config), "--state", str(self.folder),
            "--name", self.name, "--health", f"127.0.0.1:{self.port}", *flags,
        ]  # fmt: skip

    def start(self, *flags: str, **settings: Any) -> None:
        """Start it, and wait until it went around once."""
        with (self.root / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.argv(*flags, **settings), cwd=self.root, env=environment(), stdout=log, stderr=log
            )
        self.until(lambda: self.ask("/readyz")[0] == 200)

    def once(self, *flags: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        """Let it do one round, and return what it said."""
        argv = self.argv("--once", *flags, **settings)
        return subprocess.run(
            argv, cwd=self.root, env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )

    def ask(self, path: str) -> tuple[int, str]:
        """Return what it says of itself; status 0 where it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()
        except OSError:
            return 0, ""

    def until(self, holds: Callable[[], object], seconds: float = PATIENCE_S) -> None:
        """Wait until something holds while it runs."""
        until = time.monotonic() + seconds
        while not holds():
            assert self.process is None or self.process.poll() is None, self.log
            assert time.monotonic() < until, self.log
            time.sleep(0.1)

    def kill(self) -> None:
        """End it as a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        """End it as systemd does; return its status."""
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(PATIENCE_S)
        self.process = None
        return status


def replayed(log: Path) -> tuple[int, dict[str, Any]]:
    """Return the exit status of a replay, and what it told."""
    argv = [sys.executable, "-m", "pipeline.cli", "controller", "replay", str(log), "--json"]
    found = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    return found.returncode, json.loads(found.stdout) if found.stdout else {}


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
