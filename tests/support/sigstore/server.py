"""HTTP on loopback: routes to functions, and whatever they raise becomes a refusal in the services' form."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlparse

MAX_BYTES = 32 << 20


@dataclass(frozen=True)
class Request:
    """`query` has the first value of each parameter; `authorization` is the header's last word."""

    body: bytes
    query: dict[str, str]
    authorization: str

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """Bytes and what they are."""

    body: bytes
    kind: str = "application/json"

    @classmethod
    def json(cls, value: Any) -> Reply:
        return cls(json.dumps(value).encode())


Route = Callable[[Request], Reply]


class Server:
    """Serves routes, named `GET /path`, between `with` and its end; `seen` lists the requests that came."""

    def __init__(self, port: int = 0) -> None:
        self.routes: dict[str, Route] = {}
        self.seen: list[str] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            self._answer(self.rfile.read(size) if size <= MAX_BYTES else b"")

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
            pass

        def _answer(self, body: bytes) -> None:
            url = urlparse(self.path)
            name = f"{self.command} {url.path}"
            server.seen.append(name)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            request = Request(body, query, self.headers.get("Authorization", "").rsplit(" ", 1)[-1])
            try:
                status = 200 if self.command == "GET" else 201
                reply = server.routes[name](request)
            except Exception as e:  # outermost: the client gets the reason, the server lives on
                status, reply = 400, Reply.json({"code": 3, "message": f"{type(e).__name__}: {e}"})
            self.send_response(status)
            self.send_header("Content-Type", reply.kind)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

    return Handler
