"""One line of JSON for each request: what was asked for, where it went, why, and how long that took.

Rules: never a prompt, an answer, a key or an address; writing never fails a request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic_core import to_json

Write = Callable[[str], object]


@dataclass(slots=True)
class Line:
    """What is known of one request so far; times in milliseconds."""

    request: str
    kind: str
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

    def text(self) -> str:
        """Return the line; what is not known is left out."""
        found = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        return to_json(found).decode() + "\n"
