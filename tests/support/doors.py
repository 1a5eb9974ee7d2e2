"""A gateway's place before pods that run nothing: it answers golden prompts in the name of the cluster's ready pods."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipeline.deploy.render import MODEL, RELEASE
from pipeline.peers.affinity import weight
from pipeline.ports.kube import POD, Cluster, Object
from tests.support.deploys import ANSWER

PROMETHEUS = "/api/v1/query"


@dataclass
class Door:
    """What it says: releases in `wrong` answer otherwise than their evidence; `figure` is every figure of Prometheus."""

    cluster: Cluster
    namespace: str
    wrong: set[str] = field(default_factory=set)
    figure: float | None = 0.0
    asked: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and document for a request."""
        self.asked += 1
        name = "large" if body["model"].startswith("large") else "node"
        pods = [
            p for p in self.cluster.find_all(POD, self.namespace, labels=f"app.kubernetes.io/name={name}") if _ready(p)
        ]
        if not pods:
            return 503, {}, {"error": {"code": "no_endpoint"}}
        pod = max(pods, key=lambda p: weight(body["session"], p["metadata"]["name"]))
        notes = pod["metadata"]["annotations"]
        text = "no" if notes[RELEASE] in self.wrong else ANSWER
        headers = {"x-edge-endpoint": pod["metadata"]["name"], "x-edge-digest": notes[MODEL]}
        return 200, headers, {"choices": [{"message": {"content": text}}]}

    def query(self) -> Any:
        """Return Prometheus' answer to any expression."""
        found = [] if self.figure is None else [{"metric": {}, "value": [0, str(self.figure)]}]
        return {"status": "success", "data": {"resultType": "vector", "result": found}}


@contextmanager
def opened(cluster: Cluster, namespace: str) -> Iterator[Door]:
    """Yield one that listens."""
    door = Door(cluster, namespace)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path.startswith(PROMETHEUS)
            self._send(200, {}, door.query())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self._send(*door.answer(body))

        def log_message(self, *_: object) -> None: ...

        def _send(self, status: int, headers: dict[str, str], document: Any) -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    door.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield door
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return "deletionTimestamp" not in pod["metadata"] and any(
        c["type"] == "Ready" and c["status"] == "True" for c in conditions
    )
