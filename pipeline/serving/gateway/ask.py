"""What clients may send, and what is made of it: OpenAI's chat and text completions, and the short form `/generate`.

Rules: only what the gateway acts on is checked, every other field is the server's to judge; the gateway's own fields
(`sensitive`, `family`, `session`, `priority`, `deadline_ms`) may come as headers too (`x-edge-sensitive: true`) and are
not passed on; a field counts before its header, but `sensitive` holds if either says so, and what its header says is
never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from pipeline.catalog.names import Tier
from pipeline.serving.decision import Hint, Priority
from pipeline.serving.gateway.problems import Problem

OWN = frozenset({"sensitive", "family", "session", "priority", "deadline_ms"})
_FIELDS = tuple(
    (f"x-edge-{field.replace('_', '-')}".encode(), field) for field in ("family", "session", "priority", "deadline_ms")
)
_SENSITIVE = "x-edge-sensitive"
_YES, _NO = frozenset({b"true", b"1", b"yes", b"on"}), frozenset({b"false", b"0", b"no", b"off"})
_HINTS = {
    **{str(hint): hint for hint in Hint},
    str(Tier.TINY_EDGE): Hint.TINY,
    str(Tier.MID_TIER): Hint.MID,
    str(Tier.LARGE): Hint.LARGE,
}
Word = Annotated[str, Field(max_length=128)]
Tokens = Annotated[int, Field(ge=1, le=1 << 20)]


class Kind(StrEnum):
    """The interface a request came through; a label of metrics."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    GENERATE = "generate"


PATHS = {"/v1/chat/completions": Kind.CHAT, "/v1/completions": Kind.COMPLETIONS, "/generate": Kind.GENERATE}


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    max_tokens: Tokens | None = None
    sensitive: bool = False
    family: Word | None = None
    session: Word | None = None
    priority: Literal["interactive", "batch"] | None = None
    deadline_ms: Annotated[float, Field(gt=0, le=86_400_000)] | None = None


class _OpenAI(_Body):
    model: Annotated[str, Field(max_length=128, description="auto, tiny, mid, large, a tier, or a variant's name")]
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    prompt_cache_key: Word | None = None


class Part(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    type: str
    text: str | None = None


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    role: Word
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        """The turn's text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text or "" for part in self.content or ())


@final
class ChatBody(_OpenAI):
    """`POST /v1/chat/completions`, the fields the gateway looks at."""

    model_config = _example(model="auto", messages=[{"role": "user", "content": "where is the black tea?"}])
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Tokens | None = None


@final
class CompletionBody(_OpenAI):
    """`POST /v1/completions`, the fields the gateway looks at."""

    model_config = _example(model="auto", prompt="where is the black tea?", stream=True)
    prompt: str | list[int] | Annotated[list[str], Field(min_length=1, max_length=64)]


@final
class GenerateBody(_Body):
    """`POST /generate`: one prompt, one answer."""

    model_config = _example(prompt="where is the black tea?", model_hint="auto", max_tokens=24) | ConfigDict(
        extra="forbid"
    )
    prompt: str
    model_hint: Annotated[str, Field(max_length=128)] = "auto"
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None


_AnyBody = ChatBody | CompletionBody | GenerateBody


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: `document` is what goes to a server, but for the model's name."""

    kind: Kind
    document: dict[str, Any]
    texts: list[str]
    model: str
    stream: bool
    max_tokens: int | None
    family: str | None
    sensitive: bool
    priority: Priority
    deadline_ms: float | None
    session: str | None
    given_tokens: int = 0

    @property
    def path(self) -> str:
        """The server's route."""
        return "/v1/completions" if self.kind is Kind.COMPLETIONS else "/v1/chat/completions"

    @property
    def hint(self) -> Hint | None:
        """The size the client asks for; None where it names a variant."""
        return _HINTS.get(self.model)

    @property
    def is_greedy(self) -> bool:
        """Whether the same model gives the same answer again, and its text says which tokens it was made of.

        Past its own end (llama-server's and vLLM's `ignore_eos`) a model chooses tokens that have no text.
        """
        return self.document.get("temperature") == 0 and not self.document.get("ignore_eos")


def parse(kind: Kind, body: bytes, headers: Mapping[bytes, bytes]) -> Ask:
    """Return what a client asks; raises Problem, which names the field at fault."""
    try:
        document = from_json(body)
    except ValueError as e:
        raise Problem(400, "invalid_json", "the body is not JSON") from e
    if not isinstance(document, dict):
        raise Problem(400, "invalid_json", "the body is not a JSON object")
    try:
        found = _BODIES[kind].model_validate({**document, **_from_headers(headers, document)})
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Problem(400, "invalid_value", f"{where}: {first['msg']}", param=where) from e
    return _ask(kind, found, document, headers)


def _ask(kind: Kind, body: _AnyBody, document: dict[str, Any], headers: Mapping[bytes, bytes]) -> Ask:
    given, max_tokens = 0, body.max_tokens
    # Not isinstance: pydantic's costs as much as all the rest of this.
    if type(body) is GenerateBody:
        texts, sent, model, stream, session = [body.prompt], _short(body), body.model_hint, False, body.session
    else:
        sent = {key: value for key, value in document.items() if key not in OWN}
        model, stream, session = body.model, bool(body.stream), body.session or body.prompt_cache_key
        if type(body) is ChatBody:
            texts, max_tokens = [m.text for m in body.messages], body.max_completion_tokens or max_tokens
        else:
            texts, given = _prompt(body.prompt)
    return Ask(
        kind=kind,
        document=sent,
        texts=texts,
        model=model,
        stream=stream,
        max_tokens=max_tokens,
        family=body.family,
        sensitive=_is_sensitive(headers) or body.sensitive,
        priority=Priority(body.priority) if body.priority else Priority.INTERACTIVE,
        deadline_ms=body.deadline_ms,
        session=session,
        given_tokens=given,
    )


def _prompt(prompt: str | list[int] | list[str]) -> tuple[list[str], int]:
    """Return a prompt's texts, and the tokens that came as such."""
    if isinstance(prompt, str):
        return [prompt], 0
    texts = [piece for piece in prompt if isinstance(piece, str)]
    return texts, len(prompt) - len(texts)


def _short(body: GenerateBody) -> dict[str, Any]:
    sent: dict[str, Any] = {"messages": [{"role": "user", "content": body.prompt}]}
    if body.max_tokens is not None:
        sent["max_tokens"] = body.max_tokens
    if body.temperature is not None:
        sent["temperature"] = body.temperature
    return sent


def _is_sensitive(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether the header says so, one yes of several words is enough; raises Problem where one means nothing."""
    given = headers.get(_SENSITIVE.encode())
    if given is None:
        return False
    words = {word.strip().lower() for word in given.split(b",")}
    if words - _YES - _NO:
        raise Problem(400, "invalid_value", f"{_SENSITIVE}: give true or false", param=_SENSITIVE)
    return not words.isdisjoint(_YES)


def _from_headers(headers: Mapping[bytes, bytes], document: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for header, field in _FIELDS:
        value = headers.get(header)
        if value is not None and document.get(field) is None:
            found[field] = _number(value) if field == "deadline_ms" else value.decode("latin-1")
    return found


def _number(value: bytes) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value.decode("latin-1")  # the model says what is wrong with it


_BODIES: dict[Kind, type[_AnyBody]] = {
    Kind.CHAT: ChatBody,
    Kind.COMPLETIONS: CompletionBody,
    Kind.GENERATE: GenerateBody,
}
