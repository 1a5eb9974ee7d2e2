"""What the gateway itself costs: processor time for each request and each event, before a server that costs nothing.

Run: python -m tests.bench.bench_gateway [requests]
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.bench.static_server import EVENTS
from tests.support.gateways import LARGE, SHARDS, TINY, chat
from tests.support.llama_server import await_http, free_port
from tests.support.releases import LINE
from tests.support.scenes import Scene

ROOT = Path(__file__).parents[2]
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the seconds of processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


async def load(port: int, body: bytes, requests: int, concurrency: int) -> list[float]:
    """Send requests over kept connections; return the seconds each took."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    left, took = iter(range(requests)), list[float]()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in left:
            began = time.perf_counter()
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200"), answer
            if b"content-length" in answer:
                await reader.readexactly(int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            else:
                await reader.readuntil(b"\r\n0\r\n\r\n")
            took.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return sorted(took)


def start(root: Path, *flags: str) -> tuple[list[subprocess.Popen[bytes]], int, int]:
    """Start a static server, a gateway and a bare proxy before it; return the processes and the proxies' ports."""
    scene = Scene(root)
    scene.publish(1, files={f"{LARGE}/shards.json": SHARDS}, valid_days=36500)
    offered = {o.name: o.digest for o in scene.held().offers(scene.now, scene.now - scene.now).values()}
    (root / "trust.yaml").write_text(
        yaml.safe_dump({"line": LINE, "public_keys": [scene.publisher.pair.public_pem.decode()]})
    )
    served = {
        "variant": TINY, "model_sha256": offered[TINY], "release_line": LINE, "release_version": 1,
        "manifest_sha256": "0" * 64,
    }  # fmt: skip
    status = {"schema_version": 1, "name": "s", "pool": "edge", "state": "ready", "slots": 512, "served": served}
    upstream, port = free_port(), free_port()
    argv = [sys.executable, "-m", "tests.bench.static_server", str(upstream), json.dumps(status)]
    server = subprocess.Popen(argv, cwd=ROOT)
    await_http(f"http://127.0.0.1:{upstream}/status", server)
    argv = [
        sys.executable, "-c", "import sys; from pipeline.cli import main; sys.exit(main())", "gateway",
        "--edge", f"http://127.0.0.1:{upstream}", "--registry", str(root / "registry"), "--trust", str(root / "trust.yaml"),
        "--state", str(root / "state.json"), "--port", str(port), *flags,
    ]  # fmt: skip
    gateway = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL)
    await_http(f"http://127.0.0.1:{port}/readyz", gateway)
    bare = free_port()
    argv = [sys.executable, "-m", "tests.bench.bare_proxy", str(bare), f"http://127.0.0.1:{upstream}"]
    peer = subprocess.Popen(argv, cwd=ROOT)
    await_http(f"http://127.0.0.1:{bare}/status", peer)
    return [server, gateway, peer], port, bare


def measure(pid: int, port: int, body: bytes, requests: int, concurrency: int) -> tuple[float, float, float]:
    """Return processor microseconds a request, and p50 and p99 in milliseconds."""
    asyncio.run(load(port, body, max(requests // 10, concurrency), concurrency))
    before = cpu_s(pid)
    took = asyncio.run(load(port, body, requests, concurrency))
    used = (cpu_s(pid) - before) / requests * 1e6
    return used, took[len(took) // 2] * 1000, took[len(took) * 99 // 100] * 1000


def main(requests: int) -> None:
    """Measure, and print one line for each kind of answer and concurrency, the bare proxy's in turns with ours."""
    whole = json.dumps(chat(max_tokens=64, temperature=0)).encode()
    stream = json.dumps(chat(max_tokens=64, temperature=0, stream=True), separators=(",", ":")).encode()
    with tempfile.TemporaryDirectory() as root:
        (server, gateway, bare), port, bare_port = start(Path(root))
        proxies = {"gateway": (gateway.pid, port), "bare": (bare.pid, bare_port)}
        try:
            for concurrency in (1, 16, 64):
                for name, (pid, at) in proxies.items():
                    used, p50, p99 = measure(pid, at, whole, requests, concurrency)
                    print(
                        f"whole    {concurrency:3} {name:8} {used:6.0f} us a request  p50 {p50:.2f}  p99 {p99:.2f} ms"
                    )
            for concurrency in (1, 16, 64):
                for name, (pid, at) in proxies.items():
                    used, _, _ = measure(pid, at, stream, max(requests // 16, 64), concurrency)
                    print(f"streamed {concurrency:3} {name:8} {used:6.0f} us a request, {used / EVENTS:.0f} an event")
        finally:
            for process in (server, gateway, bare):
                process.kill()
                process.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
