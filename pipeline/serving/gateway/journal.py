"""One line of JSON for each request: what was asked for, where it went, why, and how long that took.

Rules: never a prompt, an answer, a key or an address; writing never fails a request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import TypeAdapter

from pipeline.serving.decision import Choice, Reason
from pipeline.serving.gateway.metrics import Metrics

Write = Callable[[bytes], object]
_STREAM = ("false", "true")  # as a label


@dataclass(slots=True)
class Line:
    """What is known of one request so far; times in milliseconds, but `at`: when it came, in seconds since 1970."""

    request: str
    kind: str
    at: float | None = None
    caller: str | None = None
    pool: str = "none"
    endpoint: str | None = None
    variant: str | None = None
    reason: str | None = None
    degraded: bool = False
    outcome: str = "failed"
    status: int = 0
    code: str | None = None
    stream: bool = False
    prompt_tokens: int = 0
    counted: str | None = None
    generated: int = 0
    failures: int = 0
    continued: int = 0
    first_ms: float | None = None
    total_ms: float = 0.0

    def chosen(self, choice: Choice, reason: Reason) -> None:
        """Take note of who answers, and why."""
        self.pool, self.endpoint, self.variant = choice.pool, choice.endpoint, choice.variant
        self.reason, self.degraded = reason, choice.degraded

    def encode(self) -> bytes:
        """Return the line; what is not known is left out."""
        return _encoder.to_json(self, exclude_none=True) + b"\n"


_encoder = TypeAdapter(Line).serializer


def end(line: Line, seconds: float, metrics: Metrics, write: Write) -> None:
    """Write a request's line, and count it."""
    line.total_ms = round(seconds * 1000, 3)
    outcome = "degraded" if line.outcome == "answered" and line.degraded else line.outcome
    metrics.duration(line.kind, line.pool, outcome, _STREAM[line.stream]).observe(seconds)
    if line.generated:
        metrics.tokens(line.pool).inc(line.generated)
    if line.code is not None:
        metrics.refused(line.code).inc()
    write(line.encode())
