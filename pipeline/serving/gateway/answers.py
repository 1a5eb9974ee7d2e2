"""What a client gets: an answer with where it comes from, its short form, or why there is none."""

from __future__ import annotations

import json
from typing import Any

from pipeline.peers import asgi
from pipeline.serving.decision import Choice, Hint
from pipeline.serving.gateway import problems, wire
from pipeline.serving.gateway.ask import Ask, Kind
from pipeline.serving.gateway.journal import Line
from pipeline.serving.gateway.offers import Offers
from pipeline.serving.gateway.problems import Problem
from pipeline.serving.gateway.upstream import Whole


def shown(choice: Choice, line: Line) -> asgi.Headers:
    """Return the headers that say where an answer comes from and why."""
    found = [
        (b"x-request-id", line.request.encode()),
        (b"x-edge-pool", choice.pool.encode()),
        (b"x-edge-endpoint", choice.endpoint.encode()),
        (b"x-edge-variant", choice.variant.encode()),
        (b"x-edge-digest", choice.digest.encode()),
        (b"x-edge-reason", (line.reason or "").encode()),
    ]
    return [*found, (b"x-edge-degraded", b"true")] if choice.degraded else found


def generated(document: dict[str, Any]) -> int:
    """Return the tokens that a server says it generated, 0 where it does not."""
    usage = document.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) and tokens > 0 else 0


def models(offers: Offers) -> dict[str, Any]:
    """Return the names that `model` may have, as OpenAI lists models."""
    names = (*Hint, *sorted({o.name for o in offers.values() if o.current}))
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 0, "owned_by": "edge-release"} for name in names],
    }


def body(ask: Ask, found: Whole, line: Line) -> bytes:
    """Return an answer in the client's interface."""
    if ask.kind is not Kind.GENERATE or found.status != 200:
        return found.body
    choice = found.document["choices"][0]
    short = {
        "text": choice["message"]["content"],
        "finish_reason": choice.get("finish_reason"),
        "usage": found.document.get("usage"),
        "pool": line.pool,
        "endpoint": line.endpoint,
        "variant": line.variant,
        "reason": line.reason,
        "degraded": line.degraded,
    }
    return json.dumps(short).encode()


async def refuse(problem: Problem, line: Line, send: asgi.Send) -> None:
    """Tell a client why there is no answer, or no more of it."""
    begun = line.status != 0
    line.outcome, line.code = "broken" if begun else "refused", problem.code
    if begun:
        await wire.events(send, problems.event(problem))
        await wire.end(send)
        return
    line.status = problem.status
    await asgi.answer(
        send, problem.status, problem.body(), [(b"x-request-id", line.request.encode()), *problem.headers()]
    )
