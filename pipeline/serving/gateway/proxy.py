"""The hot path: a client's request, its decision, its answer.

Rules: a request is refused before any work is done for it, or it is answered; when its client leaves, the server is
told at once; every request ends in one line of the journal and one observation, however it ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from pipeline.serving import affinity, asgi
from pipeline.serving.decision import Choice, Decision, Declined, Denied, Hint, Priority, Reason, Request
from pipeline.serving.gateway import answers, payload, problems, sse, wire
from pipeline.serving.gateway.ask import Ask, Kind, parse
from pipeline.serving.gateway.asking import Asking, Begun
from pipeline.serving.gateway.attempts import Hedge, Won, first
from pipeline.serving.gateway.callers import Callers, KeyEntry
from pipeline.serving.gateway.hedging import Hedging
from pipeline.serving.gateway.journal import Line, Write
from pipeline.serving.gateway.problems import Problem
from pipeline.serving.gateway.queueing import Waiting
from pipeline.serving.gateway.relay import Relay
from pipeline.serving.gateway.settings import Settings
from pipeline.serving.gateway.tokens import Counter
from pipeline.serving.gateway.tracing import Span, Tracing
from pipeline.serving.gateway.upstream import UpstreamError, Whole
from pipeline.serving.routing import route

_BUSY = frozenset({Denied.OVERLOADED, Denied.BATCH_YIELDS})


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
    hedging: Hedging = field(init=False)
    waiting: Waiting = field(init=False)
    in_flight: int = 0

    def __post_init__(self) -> None:
        self.hedging = Hedging(self.settings.effort)
        self.waiting = Waiting(self.settings.limits.waiting)

    async def handle(self, kind: Kind, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Answer one request."""
        began = self.asking.clock()
        headers = dict(scope["headers"])
        line = Line(self.new_id(), kind)
        try:
            wire.check_headers(scope["headers"], self.settings.limits)
            entry = self.callers.admit(headers)
            body = await wire.read_body(receive, headers, self.settings.limits)
            ask = _classed(parse(kind, body, headers), entry)
            line.caller, line.stream = entry.name if entry else None, ask.stream
            await wire.while_connected(receive, self._serve(ask, headers, line, began, send))
        except Problem as e:
            await answers.refuse(e, line, send)
        except wire.ClientLeftError:
            line.outcome = "left"
        except Exception:  # the outermost place: a fault of ours must not reach the client as a broken connection
            await answers.refuse(Problem(500, "internal", "a fault of the gateway", "server_error"), line, send)
            raise
        finally:
            self._note(line, self.asking.clock() - began)

    async def _serve(self, ask: Ask, headers: dict[bytes, bytes], line: Line, began: float, send: asgi.Send) -> None:
        request = await self._request(ask, line)
        span = self.tracing.begin(ask, headers)
        job = _Job(ask, request, _forward(line, headers, span), line, began, send)
        limit = self.settings.limits.answer_s
        if ask.deadline_ms is not None:
            limit = min(limit, ask.deadline_ms / 1000)
        try:
            async with asyncio.timeout(limit):
                await self._answered(job)
        except TimeoutError:
            await answers.refuse(problems.timeout(), line, send)
        except UpstreamError:
            await answers.refuse(problems.upstream(), line, send)
        finally:
            if span is not None:
                span.end(line)

    async def _request(self, ask: Ask, line: Line) -> Request:
        hint, variant = ask.hint, None
        if hint is None:
            hint, variant = Hint.AUTO, self._variant(ask.model)
        counter = self.counter
        tokens = await counter.count(ask.texts, chat=ask.kind is not Kind.COMPLETIONS) + ask.given_tokens
        line.prompt_tokens, line.counted = tokens, counter.counted
        self.asking.metrics.prompt_tokens(counter.counted).observe(tokens)
        return Request(
            prompt_tokens=tokens,
            max_tokens=ask.max_tokens,
            hint=hint,
            family=ask.family,
            sensitive=ask.sensitive,
            priority=ask.priority,
            deadline_ms=ask.deadline_ms,
            affinity=ask.session or affinity.prefix_key(ask.texts[0] if ask.texts else ""),
            variant=variant,
            counted=counter.counted,
        )

    def _variant(self, model: str) -> str:
        if any(name == model for name, _ in self.asking.fleet.offers):
            return model
        message = f"no model {model!r}; GET /v1/models lists what there is, 'auto' lets the gateway choose"
        raise Problem(404, "model_not_found", message, param="model")

    async def _answered(self, job: _Job) -> None:
        decision = await self._place(job.request)
        self.in_flight += 1
        try:
            won = await self._first(job, decision)
            self._chosen(won, decision, job.line)
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
            helps = found.reason in _BUSY and await self.waiting.wait(ticket, until - clock())
            if not helps:
                raise problems.declined(found)

    def _route(self, request: Request) -> Decision | Declined:
        return route(request, self.asking.fleet.snapshot(), self.settings.policy)

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
        choice = won.choice
        reason = won.why or decision.reason
        if choice.degraded and not decision.choice.degraded:
            reason = Reason.DEGRADED
        line.pool, line.endpoint, line.variant, line.reason = choice.pool, choice.endpoint, choice.variant, reason
        line.degraded, line.failures = choice.degraded, won.failures
        self.asking.metrics.route(choice.pool, reason).inc()

    async def _send(self, job: _Job, won: Won[Begun]) -> None:
        found, line, shown = won.answer.found, job.line, answers.shown(won.choice, job.line)
        if isinstance(found, Whole):
            won.answer.close()
            line.status, line.outcome = found.status, "answered" if found.status == 200 else "rejected"
            line.generated = answers.generated(found.document)
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
            line.generated = sum(map(sse.count, relay.blocks))
        if not line.continued:
            self._took(won.answer, line.generated)

    def _took(self, begun: Begun, tokens: int) -> None:
        begun.member.took((self.asking.clock() - begun.began) * 1000, tokens, queued=begun.queued)

    def _note(self, line: Line, seconds: float) -> None:
        metrics = self.asking.metrics
        line.total_ms = round(seconds * 1000, 3)
        outcome = "degraded" if line.outcome == "answered" and line.degraded else line.outcome
        metrics.duration(line.kind, line.pool, outcome).observe(seconds)
        if line.generated:
            metrics.tokens(line.pool).inc(line.generated)
        if line.code is not None:
            metrics.refused(line.code).inc()
        self.write(line.text())


def _classed(ask: Ask, entry: KeyEntry | None) -> Ask:
    """Return what is asked in the class that the key allows."""
    if entry is None or entry.priority is Priority.INTERACTIVE:
        return ask
    return replace(ask, priority=entry.priority)


def _forward(line: Line, headers: dict[bytes, bytes], span: Span | None) -> dict[str, str]:
    passed = payload.headers(line.request, headers)
    return {**passed, **span.headers()} if span is not None else passed
