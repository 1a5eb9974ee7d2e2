"""What the gateway costs beside other proxies: processor time for each request and event before a server that costs nothing.

Each proxy has one core for itself; clients and server share the others. Rounds alternate between the proxies, and the
one in which a proxy used the least counts: what else the machine does only adds.

Run: python -m tests.bench.bench_gateway [--requests 4000] [--rounds 3] [--only gateway,bare]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.peers.status import Pool, ServerStatus, State
from tests.bench.load import cpu_s, load
from tests.bench.proxies import PROXIES, ROOT, MissingError, Proxy, Site, released
from tests.bench.static_server import EVENTS
from tests.support.gateways import chat
from tests.support.llama_server import await_http, demo_gguf, free_port

CONCURRENCIES = (1, 16, 64)
_CORES = sorted(os.sched_getaffinity(0))
_EACH = 2  # requests that each client sends at least
_WARM = 0.1  # of a round's requests go ahead of it
PROMPT = "where is the black tea?"


@dataclass(frozen=True)
class Running:
    """A proxy that answers."""

    proxy: Proxy
    port: int
    processes: list[subprocess.Popen[bytes]]


@dataclass(frozen=True)
class Figures:
    """One round: processor microseconds a request, and how long requests took in milliseconds."""

    used_us: float
    p50_ms: float
    p99_ms: float


@contextmanager
def server(root: Path, model: bytes) -> Iterator[int]:
    """Yield the port of a server that costs nothing, and says that it serves a model's release, which is laid down."""
    served = released(root, model)
    status = ServerStatus(name="s", pool=Pool.EDGE, state=State.READY, slots=512, context=4096, served=served)
    port = free_port()
    argv = [sys.executable, "-m", "tests.bench.static_server", str(port), status.encode().decode()]
    process = subprocess.Popen(argv, cwd=ROOT)
    try:
        await_http(f"http://127.0.0.1:{port}/status", process)
        yield port
    finally:
        process.kill()
        process.wait()


@contextmanager
def running(proxy: Proxy, root: Path, upstream: int) -> Iterator[Running]:
    """Yield a proxy that answers, on a core of its own; raises MissingError."""
    port, processes = free_port(), list[subprocess.Popen[bytes]]()
    try:
        with (root / f"{proxy.name}.log").open("wb") as log:
            for argv in proxy.commands(Site(root, port, upstream)):
                processes.append(subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log))
                os.sched_setaffinity(processes[-1].pid, _CORES[-1:])
        try:
            _await_answer(port, processes)
        except AssertionError as e:
            raise AssertionError(f"{proxy.name}: {e}: {(root / log.name).read_text()[-2000:]}") from e
        if proxy.ready:
            await_http(f"http://127.0.0.1:{port}{proxy.ready}", processes[0])
        yield Running(proxy, port, processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _await_answer(port: int, processes: list[subprocess.Popen[bytes]]) -> None:
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", _body(stream=False), {"content-type": "application/json"}
    )
    until = time.monotonic() + 120
    while True:
        assert all(p.poll() is None for p in processes), "it ended"
        try:
            with urllib.request.urlopen(asked, timeout=5):
                return
        except OSError:
            assert time.monotonic() < until, "it does not answer"
            time.sleep(0.2)


def _body(*, stream: bool) -> bytes:
    asked = chat(PROMPT, max_tokens=64, temperature=0, **({"stream": True} if stream else {}))
    return json.dumps(asked, separators=(",", ":")).encode()


def measure(at: Running, requests: int, concurrency: int, *, stream: bool) -> Figures:
    """Return the figures of one round."""
    number, body = max(round(requests * at.proxy.share), _EACH * concurrency), _body(stream=stream)
    pids = [p.pid for p in at.processes]
    load(at.port, body, max(round(number * _WARM), concurrency), concurrency)
    before = cpu_s(pids)
    took = load(at.port, body, number, concurrency)
    used = (cpu_s(pids) - before) / number * 1e6
    return Figures(used, took[len(took) // 2] * 1000, took[len(took) * 99 // 100] * 1000)


def compare(proxies: list[Running], requests: int, rounds: int, *, stream: bool) -> None:
    """Measure in rounds, and print a line for each concurrency and proxy."""
    parts, unit = (EVENTS, "event") if stream else (1, "answer")
    print(f"\n{'streamed' if stream else 'whole'}: us of processor time for each {unit}; p50 and p99 of the answer")
    for concurrency in CONCURRENCIES:
        found: dict[str, Figures] = {}
        for _ in range(rounds):
            for at in proxies:
                made = measure(at, requests, concurrency, stream=stream)
                found[at.proxy.name] = min(found.get(at.proxy.name, made), made, key=lambda f: f.used_us)
        own = found["gateway"].used_us if "gateway" in found else 0.0
        for name, f in found.items():
            print(
                f"{concurrency:3} {name:12} {f.used_us / parts:8.1f} us  p50 {f.p50_ms:8.2f}  p99 {f.p99_ms:8.2f} ms"
                f"  gateway is {own / f.used_us:.3g}x"
            )


def main() -> None:
    """Start what there is, measure, and say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(p.name for p in PROXIES), help="names, with commas between them")
    args = parser.parse_args()
    os.sched_setaffinity(0, _CORES[:-1] or _CORES)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder)
        upstream = stack.enter_context(server(root, demo_gguf(root / "model").read_bytes()))
        proxies: list[Running] = []
        for proxy in PROXIES:
            if proxy.name not in args.only.split(","):
                continue
            try:
                proxies.append(stack.enter_context(running(proxy, root, upstream)))
            except MissingError as e:
                print(f"{proxy.name} is left out: {e}")
        compare(proxies, args.requests, args.rounds, stream=False)
        compare(proxies, args.requests // EVENTS, args.rounds, stream=True)


if __name__ == "__main__":
    main()
