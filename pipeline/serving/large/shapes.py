"""How OpenAI writes an answer: as a message, or as text; whole, or in chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.serving.large.answering import Answer


@dataclass(frozen=True)
class Shape:
    """One kind of answer: its id's prefix, the object's names, a whole text, a piece, and what opens and closes it."""

    prefix: str
    kind: str
    chunk_kind: str
    whole: Callable[[str], dict[str, Any]]
    piece: Callable[[str], dict[str, Any]]
    closing: dict[str, Any]
    opening: dict[str, Any] | None = None


CHAT = Shape(
    "chatcmpl", "chat.completion", "chat.completion.chunk",
    whole=lambda text: {"message": {"role": "assistant", "content": text}},
    piece=lambda text: {"delta": {"content": text}},
    closing={"delta": {}},
    opening={"delta": {"role": "assistant", "content": ""}},
)  # fmt: skip
TEXT = Shape(
    "cmpl", "text_completion", "text_completion",
    whole=lambda text: {"text": text}, piece=lambda text: {"text": text}, closing={"text": ""},
)  # fmt: skip


def usage(answer: Answer) -> dict[str, int]:
    """Return how many tokens an answer took; the one that ended it was generated too."""
    prompt, generated = len(answer.prompt), len(answer.tokens) + (answer.finish == "stop")
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
