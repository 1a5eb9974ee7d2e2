"""What the controller answers: `/metrics`, `/healthz`, `/readyz`; nothing of it is a client's."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipeline.control.controller import Controller
from pipeline.peers import asgi


@dataclass
class App:
    """The ASGI application; its controller is another one once the settings changed."""

    controller: Controller

    async def __call__(self, scope: asgi.Scope, _receive: asgi.Receive, send: asgi.Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        match scope["path"]:
            case "/metrics":
                await asgi.answer(send, 200, self.controller.metrics.text(), kind=asgi.FIGURES)
            case "/healthz":
                await asgi.answer(send, 200, b'{"status": "ok"}')
            case "/readyz":
                problem, leads = self.controller.problem, self.controller.parts.leader.leads
                body = json.dumps({"ready": problem is None, "problem": problem, "leads": leads}).encode()
                await asgi.answer(send, 200 if problem is None else 503, body)
            case _:
                await asgi.answer(send, 404, b'{"error": "there are /metrics, /healthz, /readyz"}')
