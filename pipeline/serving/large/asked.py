"""What a client asks of the large server: OpenAI's completions and chat completions, as far as it can answer them.

Rules: a field that would change the answer and cannot be honoured is refused, not ignored; what OpenAI does not define
is ignored. Names beyond OpenAI's (`top_k`, `return_token_ids`, `continue_final_message` and such) are vLLM's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MOST_STOPS = 16
LONGEST_STOP = 256  # characters
TOKENS = 1 << 20

Messages = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=1024)]
# Each of these would change an answer; only the value that does not may be given.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "n": (1,), "best_of": (1,), "logprobs": (False, 0), "top_logprobs": (0,), "echo": (False,), "suffix": ("",),
    "frequency_penalty": (0,), "presence_penalty": (0,), "repetition_penalty": (1,), "min_p": (0,), "logit_bias": ({},),
    "seed": (), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "prediction": (),
}  # fmt: skip


class RefusedError(Exception):
    """A request that cannot be answered as it stands; `param` is the field at fault."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        """Say what is wrong, for the client."""
        super().__init__(message)
        self.message, self.param, self.status = message, param, status


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    include_usage: bool = False


class Asked(BaseModel):
    """What both kinds of request have in common; how tokens are chosen is the model's own default where left out."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1, le=TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=TOKENS)] | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def limit(self) -> int | None:
        """How many tokens may be generated, None where the context is the limit."""
        return self.max_tokens


class Chat(Asked):
    """`POST /v1/chat/completions`; with `continue_final_message` the last message is the answer's beginning."""

    messages: Messages
    continue_final_message: bool = False
    max_completion_tokens: Annotated[int, Field(ge=1, le=TOKENS)] | None = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class Completion(Asked):
    """`POST /v1/completions`; `prompt` is a text or its token ids. OpenAI's `max_tokens` is 16 there."""

    prompt: str | Annotated[list[int], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, le=TOKENS)] | None = 16
    add_special_tokens: bool = True


class Tokenize(BaseModel):
    """`POST /tokenize`: of a text, or of a conversation up to where the answer starts."""

    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True


class Detokenize(BaseModel):
    """`POST /detokenize`."""

    tokens: list[Annotated[int, Field(ge=0)]]


Body = TypeVar("Body", bound=BaseModel)


def parse(kind: type[Body], body: bytes) -> Body:
    """Return a request; raises RefusedError where it is none, or asks for what is not to be had."""
    try:
        found = kind.model_validate_json(body)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and part in kind.model_fields)
        raise RefusedError(f"{place}: {first['msg']}" if place else first["msg"], place or None) from e
    if isinstance(found, Asked):
        _check(found)
    return found


def _check(asked: Asked) -> None:
    if len(asked.stops) > MOST_STOPS or any(len(text) > LONGEST_STOP for text in asked.stops):
        raise RefusedError(f"at most {MOST_STOPS} texts of {LONGEST_STOP} characters", "stop")
    for name, value in (asked.model_extra or {}).items():
        if name in NEUTRAL and value is not None and value not in NEUTRAL[name]:
            raise RefusedError(f"{name} is not supported by this server", name)


Finish = Literal["stop", "length"]
