"""What the extender answers: `/filter` and `/prioritize` to kube-scheduler, `/healthz`, `/readyz`, `/metrics`.

Rules: a body is read within bounds; whatever is not understood, unknown or out of date lets no pod of ours be placed,
and says why; pods that name no release are none of ours and pass.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime

from pipeline.control.scheduler import pods, protocol, rules
from pipeline.control.scheduler.metrics import Metrics
from pipeline.control.scheduler.needs import Needs
from pipeline.control.scheduler.pods import Wanted
from pipeline.control.scheduler.protocol import MAX_BODY, Asked, MalformedError
from pipeline.control.scheduler.releases import Releases
from pipeline.control.scheduler.rules import Refusal, Settings, Why
from pipeline.control.scheduler.watch import Nodes
from pipeline.peers.asgi import FIGURES, TEXT, Receive, Scope, Send, answer

FETCH_S = 3.0  # that an answer waits for a release that was not seen before; kube-scheduler waits for 5
_BEING_READ = Refusal(Why.RELEASE, "the pod's release is being fetched and verified")


@dataclass
class Extender:
    """What decides has; `clock` gives seconds that never run back, `now` the time by which releases expire."""

    nodes: Nodes
    releases: Releases
    settings: Settings
    clock: Callable[[], float]
    now: Callable[[], datetime]
    metrics: Metrics = field(default_factory=Metrics)
    _finding: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        path, began = scope["path"], self.clock()
        verb = {"/filter": self.filter, "/prioritize": self.prioritize}.get(path)
        if verb is not None and scope["method"] == "POST":
            await self._verb(path, verb, receive, send)
            self.metrics.took[path.removeprefix("/")].observe(self.clock() - began)
        elif scope["method"] not in {"GET", "HEAD"}:
            await answer(send, 405, b"kube-scheduler posts to /filter and /prioritize\n", kind=TEXT)
        elif path == "/healthz":
            await answer(send, 200, b"ok\n", kind=TEXT)
        elif path == "/readyz":
            doubt = self.nodes.doubt
            await answer(send, 503 if doubt else 200, f"{doubt or 'ready'}\n".encode(), kind=TEXT)
        elif path == "/metrics":
            await answer(send, 200, self.metrics.text(self.nodes, self.releases), kind=FIGURES)
        else:
            await answer(send, 404, b"there is nothing here\n", kind=TEXT)

    async def _verb(self, path: str, verb: Callable[[Asked], Awaitable[bytes]], receive: Receive, send: Send) -> None:
        body = await _body(receive)
        try:
            if body is None:
                raise MalformedError(f"the request has more than {MAX_BODY >> 20} MiB")
            asked = protocol.parse(body)
        except MalformedError as e:
            self.metrics.malformed.inc()
            await answer(send, 200 if path == "/filter" else 400, protocol.failed(str(e)))
            return
        await answer(send, 200, await verb(asked))

    async def filter(self, asked: Asked) -> bytes:
        """Return which nodes a pod may run on, and why not on the others."""
        found = await self.decide(asked)
        self.metrics.count(found.values())
        return protocol.filtered(found)

    async def decide(self, asked: Asked) -> dict[str, Refusal | None]:
        """Return of each node why a pod may not run there, None where it may."""
        wanted = pods.parse(asked.pod)
        if wanted is None:
            return dict.fromkeys(asked.nodes)
        needs = await self._needs(wanted)
        if isinstance(needs, Refusal):
            return dict.fromkeys(asked.nodes, needs)
        return rules.filter(needs, asked.nodes, self.nodes.found, self.settings)

    async def prioritize(self, asked: Asked) -> bytes:
        """Return how well each node suits, as kube-scheduler reads it."""
        return protocol.prioritized(await self.scores(asked))

    async def scores(self, asked: Asked) -> dict[str, int]:
        """Return how well each node suits a pod; 0 for pods that are none of ours, or may run nowhere."""
        wanted = pods.parse(asked.pod)
        needs = await self._needs(wanted) if isinstance(wanted, Wanted) else None
        if not isinstance(wanted, Wanted) or not isinstance(needs, Needs):
            return dict.fromkeys(asked.nodes, 0)
        known = self.nodes.found
        return {name: rules.score(needs, wanted, known.get(name), self.settings) for name in asked.nodes}

    async def _needs(self, wanted: Wanted | str) -> Needs | Refusal:
        if isinstance(wanted, str):
            return Refusal(Why.POD, wanted)
        if (doubt := self.nodes.doubt) is not None:
            return Refusal(Why.UNKNOWN, doubt)
        release = self.releases.known(wanted)
        if release is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._find(wanted)), FETCH_S)
            release = self.releases.known(wanted) or _BEING_READ
        return release if isinstance(release, Refusal) else rules.needed(wanted, release, self.now())

    async def _find(self, wanted: Wanted) -> None:
        async with self._finding:  # one at a time: pods may name any number
            if self.releases.known(wanted) is None:
                await asyncio.to_thread(self.releases.find, wanted)


async def _body(receive: Receive) -> bytes | None:
    """Return a request's body; None where it is too long, or its sender is gone."""
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > MAX_BODY:
            return None
        if not message.get("more_body"):
            return b"".join(pieces)
