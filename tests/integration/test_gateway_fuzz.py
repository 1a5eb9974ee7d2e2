"""The gateway's process against what clients must not send: generated requests, half requests, floods of headers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.bench_gateway import running, server
from tests.bench.proxies import Proxy, gateway
from tests.support.gateways import chat

# Refusals that a generated request may deserve: a deadline of a microsecond, a tier that nobody serves.
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx", 503, 504]
"""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A gateway before a server that answers everything."""
    root = tmp_path_factory.mktemp("site")
    with server(root, b"GGUF") as upstream, running(Proxy("gateway", gateway), root, upstream) as at:
        yield at.port
        assert at.processes[0].poll() is None, "the gateway ended"


def _is_well(port: int) -> bool:
    body = json.dumps(chat()).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/chat/completions", data=body) as answer:
        return bool(answer.status == 200)


def test_generated_requests_find_no_fault(port: int, tmp_path: Path) -> None:
    """Requests made from the OpenAPI schema, right and wrong ones, get what the schema says, and no 500."""
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    argv = [
        sys.executable, "-c", command, "--config-file", str(tmp_path / "schemathesis.toml"), "run",
        f"http://127.0.0.1:{port}/openapi.json", "--checks", CHECKS, "--max-examples", "40", "--seed", "1",
        "--phases", "examples,coverage,fuzzing", "--no-color", "--suppress-health-check", "all",
    ]  # fmt: skip
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert _is_well(port)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01", id="TLS"),
        pytest.param(b"GET / HTTP/1.1\r\n" * 3, id="lines"),
        pytest.param(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{", id="half a body"),
        pytest.param(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", id="negative length"),
        pytest.param(b"POST /generate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", id="chunk"),
        pytest.param(b"POST /generate HTTP/1.1\r\nx: " + b"a" * (4 << 20), id="endless header"),
        pytest.param(b"POST /generate HTTP/1.1\r\n" + b"a: b\r\n" * 900_000, id="many headers"),
    ],
)
def test_no_bytes_break_it(port: int, data: bytes) -> None:
    """Whatever comes on a connection, that connection is closed or answered, and the next one is served."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            while client.recv(1 << 16):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert _is_well(port)
