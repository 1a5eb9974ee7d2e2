"""How long kube-scheduler waits for the extender: real HTTP, 1,000 nodes, a verified release.

    python -m tests.bench.bench_scheduler [--nodes N] [--requests N]

The extender runs in a process of its own, as `edge-release scheduler` runs it, over nodes that a scripted cluster lists.
Nine of ten nodes are Pis of which every second has the model; no two have the same memory, so that no judgement is
shared between nodes. One connection is kept and one request sent after the other, as kube-scheduler does for each pod.
CPU is the extender's own, a
request. Ends with 1 where p99 of `filter` or `prioritize` is over 20 ms.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.catalog.names import Channel
from pipeline.cli.output import table
from pipeline.control.scheduler.app import Extender
from pipeline.control.scheduler.releases import Releases, Source
from pipeline.control.scheduler.rules import Settings
from pipeline.control.scheduler.run import Options, run
from pipeline.control.scheduler.watch import Nodes
from pipeline.peers import listen
from pipeline.ports.kube import NODE, Change, Kind
from pipeline.registry.folder import FolderStore
from pipeline.registry.publish import publish
from tests.support import proven
from tests.support.releases import LINE, NOW, Publisher

TARGET_MS = 20.0
WARM = 20


class Scripted:
    """A cluster whose nodes do not change."""

    def __init__(self, count: int, model: str) -> None:
        self._nodes = [_node(number, model) for number in range(count)]

    def watch(self, kind: Kind, *, labels: str = "", seconds: int = 30) -> Iterator[list[Change]]:
        yield [Change(document) for document in self._nodes] if kind is NODE else []
        while True:
            time.sleep(5)
            yield []


def _node(number: int, model: str) -> dict[str, Any]:
    if number % 10 == 0:
        found = proven.nvlink(f"node-{number:05d}", joined="4")
    else:
        found = proven.pi(f"node-{number:05d}", **({"models": model} if number % 2 else {}))
    found["status"]["allocatable"]["memory"] = f"{8_000_000 + number}Ki"
    found["metadata"]["labels"] |= {"topology.kubernetes.io/zone": f"shop-{number % 40}"}
    return found


def serve(bound: socket.socket, folder: Path, publisher: Publisher, count: int, model: str) -> None:
    """Run the extender until it is ended."""
    opener = publisher.opener
    source = Source(
        lambda: FolderStore(folder / "registry"), opener, lambda _: opener, LINE, Channel.DEV, folder / "seen.json"
    )

    def now() -> datetime:
        return datetime.now(UTC)

    releases = Releases(source, now, time.monotonic)
    extender = Extender(Nodes(Scripted(count, model), time.monotonic), releases, Settings(), time.monotonic, now)
    run(Options(bound, None, 30), extender, lambda line: print(line, file=sys.stderr))


def measure(port: int, path: str, body: bytes, requests: int) -> tuple[list[float], bytes]:
    """Return how many milliseconds each request took, and the last answer."""
    connection, took, answer = http.client.HTTPConnection("127.0.0.1", port, timeout=10), [], b""
    for _ in range(WARM + requests):
        began = time.perf_counter()
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse().read()
        took.append(1e3 * (time.perf_counter() - began))
    connection.close()
    return took[WARM:], answer


def _ready(port: int) -> None:
    for _ in range(200):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                time.sleep(0.5)  # the release follows the nodes
                return
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit("the extender did not become ready")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=1000)
    args = parser.parse_args()
    publisher = Publisher()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        release = proven.release(publisher, folder / "1", valid_days=3650)
        done = publish(
            FolderStore(folder / "registry"), release, channel=Channel.DEV, signer=publisher.sign,
            opener=publisher.opener, now=NOW,
        )  # fmt: skip
        file = done.release.manifest.variant(proven.EDGE).model_file
        assert file is not None
        bound = listen.bind("127.0.0.1", 0, tls=False, insecure=True)
        port, started = bound.getsockname()[1], (bound, folder, publisher, args.nodes, file.sha256)
        server = multiprocessing.get_context("fork").Process(target=serve, args=started, daemon=True)
        server.start()
        try:
            _ready(port)
            return report(server.pid or 0, port, args.nodes, args.requests, done.release.digest)
        finally:
            server.terminate()
            server.join()


def report(server: int, port: int, nodes: int, requests: int, digest: str) -> int:
    """Measure and print; return the exit code."""
    pod = proven.pod(release="1", manifest=digest, near="shop-7")
    names = [f"node-{number:05d}" for number in range(nodes)]
    rows, slow = [], False
    for verb in ("filter", "prioritize"):
        left = [n for n in names if int(n[-5:]) % 10] if verb == "prioritize" else names
        body = json.dumps({"Pod": pod, "Nodes": None, "NodeNames": left}).encode()
        before = cpu_ms(server)
        took, answer = measure(port, f"/{verb}", body, requests)
        cost = (cpu_ms(server) - before) / (WARM + requests)
        cuts = statistics.quantiles(took, n=100)
        slow = slow or cuts[98] > TARGET_MS
        rows.append(
            [
                verb,
                str(len(left)),
                f"{cuts[49]:.2f}",
                f"{cuts[94]:.2f}",
                f"{cuts[98]:.2f}",
                f"{max(took):.2f}",
                f"{cost:.2f}",
                _told(answer),
            ]
        )
    print(table(["verb", "nodes", "p50 ms", "p95 ms", "p99 ms", "worst ms", "CPU ms", "answer"], rows))
    return int(slow)


def cpu_ms(process: int) -> float:
    """Return the milliseconds of processor time that a process used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return 1e3 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _told(answer: bytes) -> str:
    found = json.loads(answer)
    if isinstance(found, dict):
        return f"{len(found['NodeNames'])} nodes pass, {len(found['FailedNodes'])} are refused"
    scores = [entry["Score"] for entry in found]
    return f"scores {min(scores)} to {max(scores)}"


if __name__ == "__main__":
    sys.exit(main())
