"""A streamed answer on its way to the client, through the death of the servers that give it.

Rules: the client sees one stream; what it has got is never sent twice; the rest comes from a server with the same model
file where there is one, else from any that routing allows, and is marked in its first chunk (`edge`): with the same
file and temperature 0 it is what the first server would have said. When nothing can go on with it, the client gets an
error event instead of a silent end. A server that rejects the rest is not asked for it again: another kind may take it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pipeline.peers import asgi
from pipeline.serving.decision import Choice, Decision, Reason, continuing
from pipeline.serving.gateway import payload, problems, sse, wire
from pipeline.serving.gateway.ask import Ask, Kind
from pipeline.serving.gateway.asking import Asking, Begun, events
from pipeline.serving.gateway.attempts import Won, first, rejected
from pipeline.serving.gateway.journal import Line
from pipeline.serving.gateway.sse import SoFar
from pipeline.serving.gateway.upstream import Fault, Stream, UpstreamError

_PAUSE_S = 0.5  # between two looks for a server that goes on, growing with each

Route = Callable[[frozenset[str]], Decision | None]


@dataclass
class Relay:
    """One streamed answer; `route` decides anew without the endpoints that failed, None where nothing is there."""

    ask: Ask
    asking: Asking
    route: Route
    headers: dict[str, str]
    line: Line
    tries: int
    most_bytes: int
    blocks: list[bytes] = field(default_factory=list)
    size: int = 0
    before: SoFar | None = None
    mark: dict[str, Any] | None = None
    rejecting: set[str] = field(default_factory=set)

    async def run(self, won: Won[Begun], send: asgi.Send) -> None:
        """Send an answer's events until it is complete."""
        begun, choice = won.answer, won.choice
        try:
            await self._pass(begun.block, send)
            while not sse.is_done(self.blocks[-1]):
                if self.size > self.most_bytes:
                    await self._break(send)
                    break
                try:
                    await self._pass(await _more(begun), send)
                except UpstreamError as e:
                    self.asking.failed(begun.member, e)
                    begun.close()
                    following = await self._go_on(choice, send)
                    if following is None:
                        break
                    begun, choice = following.answer, following.choice
                    await self._pass(begun.block, send)
            await wire.end(send)
        finally:
            begun.close()

    async def _pass(self, block: bytes, send: asgi.Send) -> None:
        if self.before is not None:
            block = sse.continued(block, self.before, self.mark)
        if not block:
            return
        if self.before is not None:
            self.mark = None
        self.size += len(block)
        self.blocks.append(block)
        await wire.events(send, block)

    async def _go_on(self, choice: Choice, send: asgi.Send) -> Won[Begun] | None:
        """Return an answer to the rest, or None after the stream was brought to an end."""
        self.before = before = sse.so_far(self.blocks)
        if before.finished:
            await wire.events(send, sse.DONE + b"\n\n")
            return None
        if self.ask.max_tokens is not None and before.pieces >= self.ask.max_tokens:
            await wire.events(send, sse.ending(before, chat=self.ask.kind is not Kind.COMPLETIONS))
            return None
        won = await self._found(choice, before) if payload.can_continue(self.ask, before) else None
        if won is None:
            self.asking.metrics.continuations("lost").inc()
            await self._break(send)
        return won

    async def _break(self, send: asgi.Send) -> None:
        self.line.outcome, self.line.code = "broken", "stream_broken"
        await wire.events(send, problems.event(problems.upstream("stream_broken")))

    async def _found(self, choice: Choice, before: SoFar) -> Won[Begun] | None:
        failed = frozenset({choice.endpoint})
        while self.line.continued < self.tries:
            self.line.continued += 1
            decision = self.route(failed | self.rejecting)
            if decision is not None:
                with suppress(UpstreamError):
                    return await self._continue(decision, choice, before)
            await asyncio.sleep(_PAUSE_S * self.line.continued)
            failed = frozenset()  # whoever failed may be back by now
        return None

    async def _continue(self, decision: Decision, choice: Choice, before: SoFar) -> Won[Begun]:
        path = self.ask.path

        async def attempt(other: Choice) -> Begun:
            body = payload.rest(self.ask, other.variant, before)
            begun = await self.asking.attempt(other, path, body, self.headers, stream=True)
            if begun.is_rejection:
                self.rejecting.add(other.endpoint)
                raise rejected(begun)
            return begun

        won = await first(continuing(decision, choice.digest), attempt, attempts=2)
        same = won.choice.digest == choice.digest
        self.asking.metrics.continuations("same" if same else "other").inc()
        self.mark = {
            "reason": Reason.CONTINUED,
            "endpoint": won.choice.endpoint,
            "variant": won.choice.variant,
            "digest": won.choice.digest,
            "identical": same and self.ask.is_greedy,
        }
        return won


async def _more(begun: Begun) -> bytes:
    assert isinstance(begun.found, Stream), "only streams are relayed"
    if begun.broken:
        raise UpstreamError(Fault.ERROR_EVENT, "the server reported an error")
    block, begun.broken = events(await begun.found.more())
    return block
