"""Traces: spans in OpenTelemetry's words, followed from the client to the server, without a word of the prompt."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pipeline.serving.gateway.tracing import OpenTelemetry
from tests.support.gateways import TINY, Running, chat, running
from tests.support.upstreams import says

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED, UNSAMPLED = f"00-{TRACE}-b7ad6b7169203331-01", f"00-{TRACE}-b7ad6b7169203331-00"


def _spans(root: Path, headers: dict[str, str], share: float) -> tuple[list[Any], dict[str, str]]:
    exporter = InMemorySpanExporter()
    tracing = OpenTelemetry(exporter, share, random.Random(1))
    seen: dict[str, str] = {}

    async def scenario(at: Running) -> None:
        await at.ask(chat("secret words"), headers=headers)
        seen.update(at.servers["pi"].calls[0].headers)

    async def run() -> None:
        async with running(root, {"pi": says("a")}, tracing=tracing) as found:
            await scenario(found)

    asyncio.run(run())
    return list(exporter.get_finished_spans()), seen


def test_a_sampled_trace_goes_on_to_the_server(tmp_path: Path) -> None:
    """The span belongs to the client's trace, the server's header to the span; the prompt is in neither."""
    spans, seen = _spans(tmp_path, {"traceparent": SAMPLED}, share=0.0)
    (span,) = spans
    assert f"{span.context.trace_id:032x}" == TRACE
    assert seen["traceparent"] == f"00-{TRACE}-{span.context.span_id:016x}-01"
    told = dict(span.attributes)
    assert told["gen_ai.operation.name"] == "chat"
    assert (told["gen_ai.request.model"], told["gen_ai.response.model"]) == ("auto", TINY)
    assert (told["edge.pool"], told["edge.reason"], told["http.response.status_code"]) == ("edge", "tiny_edge", 200)
    assert "secret" not in str(told)


@pytest.mark.parametrize(
    ("headers", "share", "count"),
    [
        pytest.param({"traceparent": UNSAMPLED}, 1.0, 0, id="the client decided against it"),
        pytest.param({}, 1.0, 1, id="all"),
        pytest.param({}, 0.0, 0, id="none"),
        pytest.param({"traceparent": "garbage1"}, 0.0, 1, id="garbage begins a new trace"),
    ],
)
def test_only_sampled_requests_have_spans(tmp_path: Path, headers: dict[str, str], share: float, count: int) -> None:
    """The client's decision counts, else the share; unsampled headers pass unchanged."""
    spans, seen = _spans(tmp_path, headers, share)
    assert len(spans) == count
    if not count:
        assert seen.get("traceparent") == headers.get("traceparent")
