"""The hot path: a client's request, its decision, its answer.

Rules: a request is refused before any work is done for it, or it is answered; when its client leaves, the server is
told at once; every request ends in one line of the journal and one observation, however it ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

from pipeline.peers import asgi
from pipeline.serving.decision import Choice, Decision, Declined, Denied, Request
from pipeline.serving.gateway import answers, journal, payload, problems, sse, wire
from pipeline.serving.gateway.ask import Ask, Kind, parse
from pipeline.serving.gateway.asking import Asking, Begun
from pipeline.serving.gateway.attempts import Hedge, Won, first
from pipeline.serving.gateway.callers import Callers
from pipeline.serving.gateway.hedging import Hedging
from pipeline.serving.gateway.journal import Line, Write
from pipeline.serving.gateway.problems import Problem
from pipeline.serving.gateway.question import classed, question
from pipeline.serving.gateway.queueing import Waiting
from pipeline.serving.gateway.recent import Recent
from pipeline.serving.gateway.relay import Relay
from pipeline.serving.gateway.settings import Settings
from pipeline.serving.gateway.tokens import Counter
from pipeline.serving.gateway.tracing import Span, Tracing
from pipeline.serving.gateway.upstream import UpstreamError, Whole
from pipeline.serving.routing import route

BUSY = frozenset({Denied.OVERLOADED, Denied.BATCH_YIELDS})


@dataclass(frozen=True, slots=True)
class _Job:
    """One request at work; `headers` go to servers, `began` is in seconds."""

    ask: Ask
    request: Request
    headers: dict[str, str]
    line: Line
    began: float
    send: asgi.Send


@dataclass
class Proxy:
    """What answers completions."""

    settings: Settings
    asking: Asking
    callers: Callers
    counter: Counter
    tracing: Tracing
    write: Write
    new_id: Callable[[], str]
    now: Callable[[], datetime]
    hedging: Hedging = field(init=False)
    waiting: Waiting = field(init=False)
    recent: Recent = field(default_factory=Recent)
    in_flight: int = 0

    def __post_init__(self) -> None:
        self.hedging = Hedging(self.settings.effort)
        self.waiting = Waiting(self.settings.limits.waiting)

    async def handle(self, kind: Kind, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Answer one request."""
        began = self.asking.clock()
        headers = wire.by_name(scope["headers"])
        line = Line(self.new_id(), kind, at=round(self.now().timestamp(), 3))
        try:
            wire.check_headers(scope["headers"], self.settings.limits)
            entry = self.callers.admit(headers)
            body = await wire.read_body(receive, headers, self.settings.limits, scope[wire.CONNECTED])
            ask = classed(parse(kind, body, headers), entry)
            line.caller, line.stream = entry.name if entry else None, ask.stream
            request = await self._request(ask, line)
            span = self.tracing.begin(ask, headers)
            await self._serve(
                _Job(ask, request, _forward(line, headers, span), line, began, send), scope[wire.CONNECTED], span
            )
        except Problem as e:
            await answers.refuse(e, line, send)
        except wire.ClientLeftError:
            line.outcome = "left"
        except Exception:  # the outermost place: a fault of ours must not reach the client as a broken connection
            await answers.refuse(Problem(500, "internal", "a fault of the gateway", "server_error"), line, send)
            raise
        finally:
            now = self.asking.clock()
            journal.end(line, now - began, self.asking.metrics, self.write)
            self.recent.note(line, now)

    async def _serve(self, job: _Job, client: wire.Connected, span: Span | None) -> None:
        limit, deadline = self.settings.limits.answer_s, job.ask.deadline_ms
        if deadline is not None:
            limit = min(limit, deadline / 1000)
        try:
            await wire.while_connected(client, partial(self._answered, job), limit)
        except TimeoutError:
            await answers.refuse(problems.timeout(), job.line, job.send)
        except UpstreamError:
            await answers.refuse(problems.upstream(), job.line, job.send)
        finally:
            if span is not None:
                span.end(job.line)

    async def _request(self, ask: Ask, line: Line) -> Request:
        request = await question(ask, self.counter, self.asking.fleet)
        line.prompt_tokens, line.counted = request.prompt_tokens, request.counted
        self.asking.metrics.prompt_tokens(request.counted).observe(request.prompt_tokens)
        return request

    async def _answered(self, job: _Job) -> None:
        decision = await self._place(job.request)
        self.in_flight += 1
        try:
            won = await self._first(job, decision)
            self._chosen(won, decision, job.line)
            if not won.answer.is_rejection:
                self.hedging.saw((won.choice.pool, job.ask.stream), self.asking.clock() - won.answer.began)
            await self._send(job, won)
        finally:
            self.in_flight -= 1
            self.waiting.wake()

    async def _place(self, request: Request) -> Decision:
        """Return where a request goes, after it waited for a place where that helps."""
        limits, clock = self.settings.limits, self.asking.clock
        until: float | None = None
        ticket = self.waiting.ticket(request.priority)
        while True:
            found = self._route(request) if self.in_flight < limits.in_flight else Declined(Denied.OVERLOADED, 1)
            if isinstance(found, Decision):
                return found
            until = until or clock() + limits.wait_s
            helps = found.reason in BUSY and await self.waiting.wait(ticket, until - clock())
            if not helps:
                raise problems.declined(found)

    def _route(self, request: Request) -> Decision | Declined:
        fleet = self.asking.fleet
        return route(request, fleet.snapshot(), fleet.policy)

    async def _first(self, job: _Job, decision: Decision) -> Won[Begun]:
        ask, bodies = job.ask, dict[str, bytes]()

        def attempt(choice: Choice) -> Awaitable[Begun]:
            body = bodies.get(choice.variant) or bodies.setdefault(choice.variant, payload.body(ask, choice.variant))
            return self.asking.attempt(choice, ask.path, body, job.headers, stream=ask.stream)

        delay = self.hedging.delay_s((decision.pool, ask.stream)) if decision.alternatives else None
        hedge = None if delay is None else Hedge(delay, self._spend)
        choices = (decision.choice, *decision.alternatives)
        return await first(choices, attempt, self.settings.effort.attempts, hedge)

    def _spend(self) -> bool:
        spent = self.hedging.spend()
        if spent:
            self.asking.metrics.hedges.inc()
        return spent

    def _chosen(self, won: Won[Begun], decision: Decision, line: Line) -> None:
        reason = decision.why(won.choice, won.why)
        line.chosen(won.choice, reason)
        line.failures = won.failures
        self.asking.metrics.route(won.choice.pool, reason).inc()
        self.asking.metrics.variant(won.choice.variant).inc()

    async def _send(self, job: _Job, won: Won[Begun]) -> None:
        found, line, shown = won.answer.found, job.line, answers.shown(won.choice, job.line)
        if isinstance(found, Whole):
            won.answer.close()
            line.status, line.outcome = found.status, "answered" if found.status == 200 else "rejected"
            line.generated = answers.generated(found.document)
            if not won.answer.is_rejection:
                self._took(won.answer, line.generated)
            await asgi.answer(job.send, found.status, answers.body(job.ask, found, line), shown)
            return
        seconds = self.asking.clock() - job.began
        line.first_ms = round(seconds * 1000, 3)
        self.asking.metrics.first_token(won.choice.pool).observe(seconds)
        await self._relay(job, won, shown)

    async def _relay(self, job: _Job, won: Won[Begun], shown: asgi.Headers) -> None:
        line, tries = job.line, self.settings.effort.continuations

        def again(failed: frozenset[str]) -> Decision | None:
            found = self._route(replace(job.request, excluded=failed))
            return found if isinstance(found, Decision) else None

        relay = Relay(job.ask, self.asking, again, job.headers, line, tries, self.settings.limits.answer_bytes)
        line.status, line.outcome = 200, "answered"
        try:
            await wire.begin_events(job.send, shown)
            await relay.run(won, job.send)
        finally:
            won.answer.close()
            line.generated = sum(map(sse.count, relay.blocks))
        if line.outcome == "answered" and not line.continued:
            self._took(won.answer, line.generated)

    def _took(self, begun: Begun, tokens: int) -> None:
        begun.member.took((self.asking.clock() - begun.began) * 1000, tokens, queued=begun.queued)


def _forward(line: Line, headers: dict[bytes, bytes], span: Span | None) -> dict[str, str]:
    passed = payload.headers(line.request, headers)
    return {**passed, **span.headers()} if span is not None else passed
