"""A real Prometheus with the repository's rules, which scrapes what a test starts every second."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from tests.support.llama_server import await_http, free_port

PROGRAMS = ("prometheus", "promtool")
ENABLE = "Debian: apt-get install prometheus; then: pytest -m prometheus"
MANIFESTS = Path(__file__).parents[2] / "manifests/telemetry"
RULES = sorted(MANIFESTS.glob("rules/*.yml"))
DASHBOARDS = sorted(MANIFESTS.glob("dashboards/*.json"))

_WORDS = frozenset({"and", "or", "unless", "bool", "offset"})
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NAME = re.compile(r"(?<![\w:.])[a-zA-Z_:][\w:]*\b(?!\s*\()")


def missing() -> str:
    """Return which program is not there and how to get it, nothing where all are."""
    gone = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"there is no {' and no '.join(gone)}; {ENABLE}" if gone else ""


def exposed(text: bytes) -> dict[str, float]:
    """Return the samples of an exposition by name and labels."""
    rows = (line.rsplit(" ", 1) for line in text.decode().splitlines() if line and line[0] != "#")
    return {name: float(value) for name, value in rows}


def rules() -> list[dict[str, Any]]:
    """Return every rule of the repository."""
    return [r for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for r in group["rules"]]


def shown() -> Iterator[tuple[str, str]]:
    """Yield every expression of the dashboards with the panel's name; their variables stand for everything."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                expression = re.sub(r"\$(?:instance|node)\b", ".*", target["expr"].replace("$__rate_interval", "5m"))
                yield f"{path.stem}: {panel['title']}: {target['refId']}", expression


def names(expression: str) -> set[str]:
    """Return the metrics that an expression speaks of."""
    bare = _GROUPING.sub("", re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", re.sub(r'"[^"]*"', '""', expression)))
    return set(_NAME.findall(bare)) - _WORDS


def families(exposition: str) -> set[str]:
    """Return the names of the series that an exposition may have, whether or not there are any yet."""
    found = set()
    for _, _, name, kind in (line.split() for line in exposition.splitlines() if line.startswith("# TYPE ")):
        found |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return found


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    port: int

    def get(self, path: str, **parameters: str) -> Any:
        """Return what its API says; raises AssertionError with its words where it refuses."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as e:
            raise AssertionError(f"{parameters}: {e.read().decode()}") from e

    def values(self, expression: str) -> list[float]:
        """Return the numbers an expression gives now."""
        found = [float(series["value"][1]) for series in self.get("query", query=expression)["result"]]
        return [value for value in found if isfinite(value)]

    def eventually(self, expression: str, seconds: float = 60) -> list[float]:
        """Return the numbers an expression gives once there are any: rules follow what is scraped in their own time."""
        until = time.monotonic() + seconds
        while not (found := self.values(expression)) and time.monotonic() < until:
            time.sleep(0.2)
        return found


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, Sequence[str]]) -> Iterator[Prometheus]:
    """Yield a Prometheus with the example's configuration, but for the targets of its jobs and its haste."""
    config = yaml.safe_load((MANIFESTS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(path) for path in RULES]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": list(targets.get(job["job_name"], ()))}]
    path, port = folder / "prometheus.yml", free_port()
    path.write_text(yaml.safe_dump(config))
    argv = [
        "prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        await_http(f"http://127.0.0.1:{port}/-/ready", process)
        yield Prometheus(port)
    finally:
        process.kill()
        process.wait()
