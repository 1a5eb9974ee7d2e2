"""What the node answers: `/status`, `/healthz`, `/readyz`, `/metrics` itself, the model's paths through the proxy."""

from __future__ import annotations

from typing import Protocol

from pipeline.peers.asgi import FIGURES, TEXT, Receive, Scope, Send, answer
from pipeline.peers.status import STATUS_PATH, ServerStatus, State
from pipeline.ports.nvml import Use
from pipeline.serving.node import metrics
from pipeline.serving.node.proxy import PATHS, Proxy, refuse
from pipeline.serving.node.state import NodeState


class Node(Protocol):
    """What is told of."""

    state: NodeState
    engine_queue: tuple[int, int] | None

    @property
    def gpus(self) -> tuple[Use, ...]:
        """How much of each GPU is in use."""
        ...

    async def engine_figures(self) -> str:
        """Return what the model's server tells of itself, in Prometheus' text format."""
        ...

    def status(self) -> ServerStatus:
        """Return the node's status."""
        ...


class App:
    """The ASGI application."""

    def __init__(self, node: Node, proxy: Proxy) -> None:
        """Answer for a node, and pass on through its proxy."""
        self._node, self._proxy = node, proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path in PATHS:
            await self._proxy(scope, receive, send)
        elif scope["method"] not in {"GET", "HEAD"}:
            await refuse(send, 405 if path in _OWN else 404, f"there is no {scope['method']} {path[:80]} here")
        elif path == STATUS_PATH:
            await answer(send, 200, self._node.status().model_dump_json().encode())
        elif path == "/healthz":
            await answer(send, 200, b"ok\n", kind=TEXT)
        elif path == "/readyz":
            await self._ready(send)
        elif path == "/metrics":
            text = metrics.text(self._node.state, self._node.status(), self._node.engine_queue, self._node.gpus)
            text += (await self._node.engine_figures()).encode()
            await answer(send, 200, text, kind=FIGURES)
        else:
            await refuse(send, 404, f"there is no {path[:80]} here")

    async def health(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer probes alone: this port asks for no certificate."""
        if scope["type"] == "http" and scope["path"] in PROBES and scope["method"] in {"GET", "HEAD"}:
            await self(scope, receive, send)
        elif scope["type"] == "http":
            await refuse(send, 404, "probes alone are answered here")

    async def _ready(self, send: Send) -> None:
        status = self._node.status()
        if status.state is State.READY:
            await answer(send, 200, b"ready\n", kind=TEXT)
        else:
            await answer(send, 503, f"{status.state}: {status.reason or 'wait'}\n".encode(), kind=TEXT)


PROBES = frozenset({"/healthz", "/readyz"})
_OWN = PROBES | {STATUS_PATH, "/metrics"}
