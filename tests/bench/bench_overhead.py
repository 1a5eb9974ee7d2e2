"""What the gateway adds to the time of a real llama-server's answer: asked directly and through it, in turns.

Run: python -m tests.bench.bench_overhead [--pairs 400]
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from pipeline.peers.status import Pool
from pipeline.toolchain import runtime
from tests.bench.proxies import ROOT, Site, gateway, released
from tests.support.gateways import chat
from tests.support.llama_server import LlamaServer, await_http, demo_gguf, free_port, golden


def ask(connection: http.client.HTTPConnection, body: bytes) -> float:
    """Return the milliseconds until an answer is complete."""
    began = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    data = answer.read()
    assert answer.status == 200, data
    return (time.perf_counter() - began) * 1000


def pairs(direct: int, through: int, body: bytes, number: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of requests that went to one port and the other in turns, each over a kept connection."""
    ends = [http.client.HTTPConnection("127.0.0.1", port) for port in (direct, through)]
    for _ in range(20):
        for end in ends:
            ask(end, body)
    took: tuple[list[float], list[float]] = [], []
    for turn in range(number):
        for side in (0, 1) if turn % 2 else (1, 0):
            took[side].append(ask(ends[side], body))
    return took


def measure(model: Path, number: int) -> None:
    """Start a server and the gateway, and print what it adds."""
    body = json.dumps(chat(golden("diagnosis")["prompt"], temperature=0, max_tokens=24)).encode()
    with tempfile.TemporaryDirectory() as folder:
        root, port = Path(folder), free_port()
        program = runtime.find(runtime.native()).program(runtime.SERVER)
        server = LlamaServer(program, model, Pool.EDGE, released(root, model.read_bytes()))
        (argv,) = gateway(Site(root, port, server.port, server.status_url))
        process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            await_http(f"http://127.0.0.1:{port}/readyz", process)
            direct, through = pairs(server.port, port, body, number)
        finally:
            process.kill()
            process.wait()
            server.stop()
    added = [b - a for a, b in zip(direct, through, strict=True)]
    for name, found in (("direct", direct), ("through the gateway", through), ("added, pair by pair", added)):
        p99 = sorted(found)[len(found) * 99 // 100]
        print(f"{name:20} p50 {statistics.median(found):6.2f}  p99 {p99:6.2f} ms")


def main() -> None:
    """Measure with a model's file, or the demo's teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--model", type=Path, help="a GGUF file; the demo's teacher where none is named")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(args.model or demo_gguf(Path(folder)), args.pairs)


if __name__ == "__main__":
    main()
