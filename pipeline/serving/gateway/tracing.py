"""OpenTelemetry spans in the words of its conventions for generative AI, for a share of the requests.

Sources: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/, https://www.w3.org/TR/trace-context/

Rules: a trace that a client began is followed as it decided; others are sampled; a request that is not sampled costs
next to nothing and its headers pass unchanged. No prompt and no answer is in a span.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Protocol

from pipeline.serving.gateway.ask import Ask, Kind
from pipeline.serving.gateway.journal import Line

_OPERATIONS = {Kind.CHAT: "chat", Kind.GENERATE: "chat", Kind.COMPLETIONS: "text_completion"}


class Span(Protocol):
    """One request's span."""

    def headers(self) -> dict[str, str]:
        """Return the headers that let a server continue the trace."""
        ...

    def end(self, line: Line) -> None:
        """End the span with what became of the request."""
        ...


class Tracing(Protocol):
    """What begins spans."""

    def begin(self, ask: Ask, headers: Mapping[bytes, bytes], /) -> Span | None:
        """Return a request's span, None where it is not sampled."""
        ...

    def close(self) -> None:
        """Send what was not sent yet."""
        ...


class Off:
    """No tracing: the clients' trace headers pass through."""

    def begin(self, _ask: Ask, _headers: Mapping[bytes, bytes]) -> Span | None:
        return None

    def close(self) -> None:
        return None


class OpenTelemetry:
    """Spans sent by an exporter to a collector."""

    def __init__(self, exporter: Any, share: float, draw: random.Random) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider = TracerProvider(resource=Resource.create({"service.name": "edge-release-gateway"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("edge-release")
        self._share = share
        self._draw = draw

    def begin(self, ask: Ask, headers: Mapping[bytes, bytes]) -> Span | None:
        given = headers.get(b"traceparent")
        sampled = given.endswith(b"1") if given else self._draw.random() < self._share
        return _Span(self._tracer, ask, headers) if sampled else None

    def close(self) -> None:
        self._provider.shutdown()


class _Span:
    def __init__(self, tracer: Any, ask: Ask, headers: Mapping[bytes, bytes]) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._propagator = TraceContextTextMapPropagator()
        names = ("traceparent", "tracestate")
        carrier = {n: headers[n.encode()].decode("latin-1") for n in names if n.encode() in headers}
        operation = _OPERATIONS[ask.kind]
        self._span = tracer.start_span(
            f"{operation} {ask.hint or 'variant'}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"gen_ai.operation.name": operation, "gen_ai.request.model": ask.model[:128]},
        )

    def headers(self) -> dict[str, str]:
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(self._span))
        return carrier

    def end(self, line: Line) -> None:
        found = {
            "gen_ai.response.model": line.variant,
            "gen_ai.usage.input_tokens": line.prompt_tokens,
            "gen_ai.usage.output_tokens": line.generated,
            "server.address": line.endpoint,
            "http.response.status_code": line.status,
            "edge.pool": line.pool,
            "edge.reason": line.reason,
            "edge.degraded": line.degraded,
            "error.type": line.code,
        }
        self._span.set_attributes({name: value for name, value in found.items() if value is not None})
        self._span.end()


def otlp(url: str, share: float) -> OpenTelemetry:
    """Return tracing that sends spans to a collector's address over OTLP, HTTP."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OpenTelemetry(OTLPSpanExporter(endpoint=url), share, random.Random())  # noqa: S311 - no secret
