"""One request's conversation with a data plane.

Rules: a request is decided once, when its body is there; it is refused or sent to named addresses, never passed on
undecided. What is learned from the answer's head (who answered, and how) goes to the endpoints' records, as in the
gateway. With that the conversation is over, unless the data plane streams answers through it: one that stays open takes
its answer along when a picker dies. A conversation about a completion ends in one line of the journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic_core import to_json

from pipeline.serving.decision import Reason
from pipeline.serving.gateway import answers, journal, problems, wire
from pipeline.serving.gateway.callers import KeyEntry
from pipeline.serving.gateway.journal import Line
from pipeline.serving.gateway.problems import Problem
from pipeline.serving.gateway.upstream import ALIVE, CLIENTS_FAULT, Fault
from pipeline.serving.picker import messages
from pipeline.serving.picker.picker import Pick, Picker
from pipeline.serving.picker.visit import Visit

_PASSED_OVER = "passed_over"  # a fault the data plane met and went on from; it knows which


class Exchange:
    """What is known of one request."""

    def __init__(self, picker: Picker) -> None:
        self._picker = picker
        self._parts = picker.parts
        self._began = picker.parts.clock()
        self._line: Line | None = None
        self._streamed = self._answer_streamed = False
        self._headers: Mapping[bytes, bytes] = {}
        self._entry: KeyEntry | None = None
        self._subset: frozenset[str] | None = None
        self._body = bytearray()
        self._pick: Pick | None = None
        self._visit: Visit | None = None
        self.over = False

    async def replies(self, message: Any) -> list[Any]:
        """Return the replies to a data plane's next message."""
        try:
            return await _STEPS[messages.phase(message)](self, message)
        except Problem as e:
            if self._line is not None:
                self._line.outcome, self._line.code, self._line.status = "refused", e.code, e.status
            return [messages.refusal(e)]

    def end(self) -> None:
        """Close the books on the request."""
        line = self._line
        if line is None:
            return
        if self._visit is not None:
            self._leave(self._visit, line)
        if line.status == 0:
            line.outcome = "left"
        journal.end(line, self._parts.clock() - self._began, self._picker.metrics, self._parts.write)

    def _leave(self, visit: Visit, line: Line) -> None:
        """End the visit; one whose stream goes on unseen counts until the endpoint's own state tells of it."""
        if self.over and line.stream:
            asyncio.get_running_loop().call_later(self._parts.settings.poll_s, visit.end)
            return
        visit.end(answered=line.outcome == "answered")

    async def _head(self, message: Any) -> list[Any]:
        mode = messages.body_mode(message)
        self._streamed, self._answer_streamed = messages.is_streamed(mode), messages.answer_streamed(message)
        self._headers = messages.headers(message.request_headers.headers)
        self._subset = messages.subset(message)
        kind = self._picker.kind(self._headers)
        if kind is not None:
            name = self._headers.get(b"x-request-id", b"").decode("latin-1") or self._parts.new_id()
            self._line = Line(name, kind, at=round(self._parts.now().timestamp(), 3))
        wire.check_headers(list(self._headers.items()), self._parts.settings.limits)
        self._entry = self._parts.callers.admit(self._headers)
        if self._line is None:
            return [messages.at_once(200, to_json(answers.models(self._picker.fleet.offers)), "models")]
        self._line.caller = self._entry.name if self._entry else None
        messages.check_mode(mode)
        wire.check_length(self._headers.get(b"content-length"), self._parts.settings.limits)
        if message.request_headers.end_of_stream:
            return await self._decide()
        return [] if self._streamed else [messages.go_on("request_headers")]

    async def _more(self, message: Any) -> list[Any]:
        self._body += message.request_body.body
        wire.bounded(self._body, self._parts.settings.limits)
        if self._streamed and not message.request_body.end_of_stream:
            return []
        return await self._decide()

    async def _trailers(self, _: Any) -> list[Any]:
        done = [messages.go_on("request_trailers")]
        return [*await self._decide(last=False), *done] if self._streamed and self._pick is None else done

    async def _decide(self, *, last: bool = True) -> list[Any]:
        assert self._line is not None, "only completions have bodies"
        picker = self._picker
        pick = await picker.pick(
            self._line, self._headers, bytes(self._body), entry=self._entry, subset=self._subset, began=self._began
        )
        self._pick = pick
        self._visit = Visit.begin(picker.fleet.members[pick.decision.endpoint], self._parts.clock)
        return (
            messages.to_streamed(pick.named, pick.body, last=last)
            if self._streamed
            else [messages.to(pick.named, pick.body)]
        )

    async def _answer(self, message: Any) -> list[Any]:
        if self._pick is None:
            return [messages.go_on("response_headers")]
        line, pick = self._line, self._pick
        assert line is not None, "what was decided has one"
        assert self._visit is not None, "what was decided is somewhere"
        line.failures = pick.place(messages.served(message))
        choice = pick.choices[line.failures]
        visit = self._visit = self._moved(line.failures)
        status = int(messages.headers(message.response_headers.headers)[b":status"])
        if status != 200 and status not in CLIENTS_FAULT:
            self._picker.metrics.failures(choice.endpoint, Fault.STATUS).inc()
            if status not in ALIVE:
                visit.failed()
            raise problems.timeout() if status == 504 else problems.upstream()
        visit.worked()
        line.status, line.outcome = status, "answered" if status == 200 else "rejected"
        reason = pick.decision.why(choice, Reason.RETRY if line.failures else None)
        line.chosen(choice, reason)
        self._picker.metrics.route(choice.pool, reason).inc()
        self._picker.metrics.variant(choice.variant).inc()
        self.over = not self._answer_streamed
        return [messages.shown(answers.shown(choice, line))]

    def _moved(self, place: int) -> Visit:
        """Return the visit that is answered: those named before it failed."""
        assert self._pick is not None, "there is a decision"
        assert self._visit is not None, "which sent it somewhere"
        visit, members = self._visit, self._picker.fleet.members
        for passed, following in zip(self._pick.choices[:place], self._pick.choices[1:], strict=False):
            self._picker.metrics.failures(passed.endpoint, _PASSED_OVER).inc()
            visit.failed()
            visit.end(answered=False)
            visit = Visit.begin(members[following.endpoint], self._parts.clock)
        return visit

    async def _answer_body(self, message: Any) -> list[Any]:
        found = message.response_body
        if self._answer_streamed:
            return [messages.piece("response_body", found.body, last=found.end_of_stream)]
        return [messages.go_on("response_body")]

    async def _answer_trailers(self, _: Any) -> list[Any]:
        return [messages.go_on("response_trailers")]


_STEPS: dict[str, Callable[[Exchange, Any], Awaitable[list[Any]]]] = {
    "request_headers": Exchange._head,
    "request_body": Exchange._more,
    "request_trailers": Exchange._trailers,
    "response_headers": Exchange._answer,
    "response_body": Exchange._answer_body,
    "response_trailers": Exchange._answer_trailers,
}
