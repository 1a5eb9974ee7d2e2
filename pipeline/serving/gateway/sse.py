"""Events of a streamed completion: what text they hold, and how an answer goes on after its server died.

Rules: blocks are whole events and are not parsed while all goes well; what cannot be continued faithfully (several
choices, tools, reasoning) is not continued. A continuation's events carry the first server's id, so that the client
sees one answer, and their usage counts the whole of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

DONE = b"data: [DONE]"
_DATA = b"data:"
_ERRORS = (b'data: {"error"', b'data:{"error"', b"error:", b"event: error")
_KEPT = ("id", "created", "model")


def is_done(block: bytes) -> bool:
    """Return whether a block ends the stream."""
    return DONE in block


def is_error(block: bytes) -> bool:
    """Return whether a block says that its server failed."""
    return any(event.startswith(_ERRORS) for event in block.split(b"\n\n")) if b"error" in block else False


def healthy(block: bytes) -> bytes:
    """Return a block's events before the one in which its server says that it failed."""
    kept: list[bytes] = []
    for found in block.split(b"\n\n"):
        if found.startswith(_ERRORS):
            break
        kept.append(found)
    return b"".join(found + b"\n\n" for found in kept if found)


def count(block: bytes) -> int:
    """Return how many events a block holds."""
    return block.count(b"\n\n")


def chunks(block: bytes) -> Iterator[dict[str, Any]]:
    """Yield the JSON of a block's events; what is no JSON object is left out."""
    for event in block.split(b"\n\n"):
        data = event.strip().removeprefix(_DATA).strip()
        if not data.startswith(b"{"):
            continue
        try:
            found = from_json(data)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


@dataclass(frozen=True, slots=True)
class SoFar:
    """What a client has got of an answer: its text, the pieces it came in, the first chunk, and whether it is over."""

    text: str
    pieces: int
    head: dict[str, Any]
    finished: bool
    plain: bool


def so_far(blocks: Iterable[bytes]) -> SoFar:
    """Return what the blocks sent to a client amount to."""
    texts: list[str] = []
    head: dict[str, Any] = {}
    finished, plain = False, True
    for chunk in (c for block in blocks for c in chunks(block)):
        head = head or {key: chunk[key] for key in _KEPT if key in chunk}
        for choice in _choices(chunk):
            text = _text(choice)
            plain = plain and choice.get("index", 0) == 0 and text is not None
            finished = finished or choice.get("finish_reason") is not None
            if text:
                texts.append(text)
    return SoFar("".join(texts), len(texts), head, finished, plain)


def continued(block: bytes, before: SoFar, mark: dict[str, Any] | None) -> bytes:
    """Return a continuation's block as the client is to see it; `mark` is added to its first chunk with text."""
    found: list[bytes] = []
    for chunk in chunks(block):
        if _is_role_alone(chunk):
            continue
        seen = {**chunk, **before.head}
        if mark and not found:
            seen["edge"] = mark
        if isinstance(chunk.get("usage"), dict):
            seen["usage"] = _usage(chunk["usage"], before.pieces)
        found.append(event(seen))
    return b"".join(found) + (DONE + b"\n\n" if is_done(block) else b"")


def event(chunk: dict[str, Any]) -> bytes:
    """Return a chunk as an event."""
    return b"data: " + json.dumps(chunk, separators=(",", ":"), ensure_ascii=False).encode(errors="replace") + b"\n\n"


def ending(before: SoFar, *, chat: bool) -> bytes:
    """Return the events that end an answer whose last token was already sent."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length", **({"delta": {}} if chat else {"text": ""})}
    kind = "chat.completion.chunk" if chat else "text_completion"
    return event({**before.head, "object": kind, "choices": [choice]}) + DONE + b"\n\n"


def _choices(chunk: dict[str, Any]) -> Sequence[dict[str, Any]]:
    found = chunk.get("choices")
    return [c for c in found if isinstance(c, dict)] if isinstance(found, list) else []


def _text(choice: dict[str, Any]) -> str | None:
    """Return a choice's piece of text; None where it holds something that is no text."""
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        text = choice.get("text")
        return text if isinstance(text, str) else ""
    if any(value for key, value in delta.items() if key not in {"role", "content"}):
        return None
    content = delta.get("content")
    return content if isinstance(content, str) else ""


def _is_role_alone(chunk: dict[str, Any]) -> bool:
    found = _choices(chunk)
    return bool(found) and all(
        isinstance(c.get("delta"), dict)
        and "role" in c["delta"]
        and not c["delta"].get("content")
        and c.get("finish_reason") is None
        for c in found
    )


def _usage(usage: dict[str, Any], pieces: int) -> dict[str, Any]:
    """Return usage over the whole answer: what was sent before came to the second server as prompt."""
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return usage
    return {**usage, "prompt_tokens": max(prompt - pieces, 0), "completion_tokens": completion + pieces}
