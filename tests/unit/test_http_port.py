"""One question over HTTP, and Prometheus' answers, against a real server on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pipeline.errors import ToolError
from pipeline.ports import http
from pipeline.ports.prometheus import Prometheus, Sample

VECTOR = {"resultType": "vector", "result": [{"metric": {"a": "b"}, "value": [0, "1.5"]}]}
ANSWERS: dict[str, tuple[int, Any]] = {
    "vector": (200, {"status": "success", "data": VECTOR}),
    "scalar": (200, {"status": "success", "data": {"resultType": "scalar", "result": [0, "2"]}}),
    "nan": (
        200,
        {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": [0, "NaN"]}]}},
    ),
    "nothing": (200, {"status": "success", "data": {"resultType": "vector", "result": []}}),
    "range": (200, {"status": "success", "data": {"resultType": "matrix", "result": []}}),
    "wrong": (400, {"status": "error", "error": "parse error: wrong"}),
}


class Handler(BaseHTTPRequestHandler):
    """Answers queries from a table, and says back what was posted."""

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        if place.path == "/api/v1/query":
            status, document = ANSWERS[parse_qs(place.query)["query"][0]]
            self._send(status, json.dumps(document).encode())
        elif place.path == "/large":
            self._send(200, b"x" * 4096)
        else:
            self._send(404, b"no such page")

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        self._send(200, json.dumps({"said": data.decode(), "key": self.headers["authorization"]}).encode())

    def log_message(self, *_: object) -> None: ...

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("X-Edge-Endpoint", "node-0")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_body_and_headers_arrive(url: str) -> None:
    """What is posted is heard, and headers of the answer are found in small letters."""
    answer = http.ask(url, b"hello", {"authorization": "Bearer k"})
    assert answer.json() == {"said": "hello", "key": "Bearer k"}
    assert answer.headers["x-edge-endpoint"] == "node-0"


def test_a_refusal_is_an_answer(url: str) -> None:
    """404 is one; that it is no JSON is told with what it is."""
    answer = http.ask(f"{url}/nowhere")
    assert answer.status == 404
    with pytest.raises(ToolError, match="no such page"):
        answer.json()


def test_a_long_answer_is_cut_off(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the bound is none."""
    monkeypatch.setattr(http, "MAX_BYTES", 4095)
    with pytest.raises(ToolError, match="more than 4095 bytes"):
        http.ask(f"{url}/large")


@pytest.mark.parametrize("bad", ["http://127.0.0.1:9/", "file:///etc/passwd", "https://127.0.0.1:9/"])
def test_no_answer_is_an_error_with_a_hint(bad: str) -> None:
    """Nobody listens, or it is no address of the web."""
    with pytest.raises(ToolError) as caught:
        http.ask(bad, headers={"authorization": "Bearer secret"}, timeout_s=2)
    assert caught.value.hint
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("query", "samples"),
    [("vector", [Sample(1.5, {"a": "b"})]), ("scalar", [Sample(2.0)]), ("nan", []), ("nothing", [])],
)
def test_samples(url: str, query: str, samples: list[Sample]) -> None:
    """Values with their labels; what is no number is none."""
    assert Prometheus(url).query(query) == samples


@pytest.mark.parametrize(("query", "said"), [("wrong", "parse error"), ("range", "a matrix")])
def test_what_prometheus_refuses(url: str, query: str, said: str) -> None:
    """The reason is passed on."""
    with pytest.raises(ToolError, match=said):
        Prometheus(url).query(query)
