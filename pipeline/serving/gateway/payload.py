"""What goes to a server for a request, or for the rest of one.

Rules: the model is named by its variant; an answer is continued by giving its text so far as the last turn, in the
fields that both llama-server and vLLM know (`continue_final_message`). A grammar would begin anew with the rest, so an
answer that must have a form is not continued.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from pipeline.serving.gateway.ask import Ask, Kind
from pipeline.serving.gateway.sse import SoFar

_PASSED = (b"traceparent", b"tracestate", b"baggage")
_FORMS = frozenset({"grammar", "json_schema", "structured_outputs"})  # and vLLM's older guided_*


def body(ask: Ask, variant: str) -> bytes:
    """Return a request's body for a server of a variant."""
    return _encode({**ask.document, "model": variant, "stream": ask.stream})


def anywhere(ask: Ask) -> bytes:
    """Return a request's body for a server of any variant: without the model's name each takes it for its own."""
    return _encode({**{k: v for k, v in ask.document.items() if k != "model"}, "stream": ask.stream})


def rest(ask: Ask, variant: str, before: SoFar) -> bytes:
    """Return the body that asks for the rest of an answer."""
    document: dict[str, Any] = {**ask.document, "model": variant, "stream": True}
    if ask.max_tokens is not None:
        document.pop("max_completion_tokens", None)
        document["max_tokens"] = ask.max_tokens - before.pieces
    if ask.kind is Kind.COMPLETIONS:
        return _encode({**document, "prompt": document["prompt"] + before.text})
    if not before.text:
        return _encode(document)
    turns = [*document["messages"], {"role": "assistant", "content": before.text}]
    return _encode({**document, "messages": turns, "continue_final_message": True, "add_generation_prompt": False})


def can_continue(ask: Ask, before: SoFar) -> bool:
    """Return whether an answer can be continued by its text: one choice of plain, free text, from a prompt of text."""
    one = ask.document.get("n") in {None, 1} and before.plain and not _is_formed(ask.document)
    if ask.kind is Kind.COMPLETIONS:
        return one and isinstance(ask.document.get("prompt"), str) and not ask.document.get("echo")
    return one and not ask.document.get("tools")


def _is_formed(document: Mapping[str, Any]) -> bool:
    """Return whether a request constrains its answer's form, as llama-server's, vLLM's and OpenAI's fields do."""
    form = document.get("response_format")
    if form and not (isinstance(form, dict) and form.get("type") == "text"):
        return True
    return any(value and (name in _FORMS or name.startswith("guided_")) for name, value in document.items())


def headers(request_id: str, received: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return the headers of a request to a server: its trace goes with it, the client's credentials do not."""
    passed = {name.decode(): received[name].decode("latin-1") for name in _PASSED if name in received}
    return {"content-type": "application/json", "x-request-id": request_id, **passed}


def _encode(document: dict[str, Any]) -> bytes:
    return to_json(document)
