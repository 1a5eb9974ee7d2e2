"""A tour of a site: requests with OpenAI's own client, one for each rule of routing, then a node and the NVLink pool
are killed under requests.

Rules: prompts are the release's golden prompts; what is told of an answer is what the gateway said of it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import openai

from pipeline.catalog.golden import GoldenPrompt
from pipeline.errors import StageError
from pipeline.lab.site import Site
from pipeline.peers.policy import Policy

LONG_STREAM = 192  # tokens; at 256 it would not be the edge's to answer
KILLED_AFTER = 1  # pieces of a stream; some more are on their way then
HURRIED = "deadline_ms: 1"  # the request that no server can answer in time
_TRIES = 3  # to kill a node within a stream: a small model may be at its end before the signal arrives

See = Callable[[int, Any], Awaitable[None]]


async def _nothing(_pieces: int, _chunk: Any) -> None:
    pass


@dataclass(frozen=True)
class Asked:
    """A request; `shown` names it to the user, `fields` are those of the body beside OpenAI's usual ones."""

    shown: str
    prompt: str
    model: str = "auto"
    max_tokens: int = 24
    stream: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answered:
    """Where a request went and why; nowhere if it was refused. `took_ms` lasts until the answer's last byte."""

    shown: str
    pool: str | None
    endpoint: str | None
    variant: str | None
    reason: str
    took_ms: float
    answer: str
    tokens: int = 0
    degraded: bool = False


@dataclass(frozen=True)
class Broken:
    """A stream whose node, `killed`, was killed in the middle of it; `edge` is what its rest, `after` some pieces, is
    marked with.

    `same` says whether its text is that of the same request undisturbed, `answered` whether it begins with the answer.
    """

    killed: str
    after: int
    edge: Mapping[str, Any]
    tokens: int
    same: bool
    answered: bool


def requests(golden: Sequence[GoldenPrompt]) -> list[Asked]:
    """Return a request for each rule."""
    one, two, three = (golden[i * len(golden) // 3].prompt for i in range(3))
    return [
        Asked("a short prompt", one),
        Asked("the same, streamed", one, stream=True),
        Asked("another session", two, fields={"session": "shelf-7"}),
        Asked("sensitive", two, fields={"sensitive": True}),
        Asked("model: mid", three, model="mid"),
        Asked("model: large", three, model="large"),
        Asked("priority: batch", three, fields={"priority": "batch"}),
        Asked("a long prompt", long_prompt(golden)),
        Asked(HURRIED, one, fields={"deadline_ms": 1}),
    ]


def long_prompt(golden: Sequence[GoldenPrompt]) -> str:
    """Return golden prompts one after another, of more words, so of more tokens, than the edge takes."""
    words: list[str] = []
    for prompt in cycle(golden[:: max(1, len(golden) // 8)]):
        words += prompt.prompt.split()
        if len(words) >= Policy().tiny_prompt_tokens:
            break
    return " ".join(words)


class Tour:
    """Requests to a site; `close` it."""

    def __init__(self, site: Site) -> None:
        """Speak to the site's gateway as any program does; the client itself repeats nothing."""
        self._site = site
        self._client = openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0)
        self._completions = self._client.chat.completions.with_raw_response  # loads half a second of modules

    async def models(self) -> list[str]:
        """Return the names that a request's model may have."""
        return [model.id async for model in self._client.models.list()]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(self, asked: Asked) -> Answered:
        """Send a request and return where it went; where it is refused, why.

        Raises:
            StageError: the gateway could not be asked, or broke an answer off.
        """
        began = time.monotonic()
        try:
            raw = await self._create(asked)
            text, tokens = await self._read(raw.parse()) if asked.stream else _whole(raw.parse())
        except openai.APIStatusError as e:
            took_ms = (time.monotonic() - began) * 1000
            return Answered(asked.shown, None, None, None, str(e.code), took_ms, f"refused with {e.status_code}")
        except openai.APIError as e:
            raise self._failed(asked, e) from e
        took_ms, said = (time.monotonic() - began) * 1000, raw.headers
        pool, endpoint, variant, reason = (said[f"x-edge-{n}"] for n in ("pool", "endpoint", "variant", "reason"))
        degraded = "x-edge-degraded" in said
        return Answered(asked.shown, pool, endpoint, variant, reason, took_ms, text, tokens, degraded)

    async def break_stream(self, golden: Sequence[GoldenPrompt]) -> Broken:
        """Kill the node that streams the longest answer in the middle of it, see what the client gets; start it again.

        The model is told to go on past its end, so that there is a middle. What it says there is no sense, and need not
        come out the same twice: tokens that have no text, which it chooses there, are lost when text is read back.

        Raises:
            StageError: as `ask`; or the model was too fast for the signal, every time.
        """
        prompt = max(golden, key=lambda p: len(p.expected)).prompt
        asked = Asked("a stream whose node is killed", prompt, "tiny", LONG_STREAM, True, {"ignore_eos": True})
        answer, undisturbed = await self.ask(Asked("its answer", prompt, "tiny")), await self.ask(asked)
        for _ in range(_TRIES):
            try:
                raw = await self._create(asked)
                killing = _Killing(self._site, raw.headers["x-edge-endpoint"])
                text, tokens = await self._read(raw.parse(), killing.see)
            except openai.APIError as e:
                raise self._failed(asked, e) from e
            await self._site.start(killing.node)
            if killing.edge:
                same, answered = text == undisturbed.answer, text.startswith(answer.answer)
                return Broken(killing.node, killing.after, killing.edge, tokens, same, answered)
            await self._site.until_usable(killing.node)
        raise StageError("each time the answer was complete before its node was gone", hint="run it again")

    async def _create(self, asked: Asked) -> Any:
        streamed: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if asked.stream else {}
        return await self._completions.create(
            model=asked.model, messages=[{"role": "user", "content": asked.prompt}], max_tokens=asked.max_tokens,
            temperature=0, extra_body=dict(asked.fields), **streamed,
        )  # fmt: skip

    async def _read(self, stream: Any, see: See = _nothing) -> tuple[str, int]:
        """Return a stream's text and how many tokens it says it has."""
        pieces, tokens = list[str](), 0
        async for chunk in stream:
            pieces += [c.delta.content for c in chunk.choices if c.delta.content]
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
            await see(len(pieces), chunk)
        return "".join(pieces), tokens

    def _failed(self, asked: Asked, error: Exception) -> StageError:
        return StageError(f"{asked.shown}: {error}", hint=f"see {self._site.logs}")


class _Killing:
    """Kills a stream's node after some pieces, and keeps what the rest is marked with."""

    def __init__(self, site: Site, node: str) -> None:
        self.node = node
        self.edge: Mapping[str, Any] = {}
        self.after = 0
        self._site = site
        self._done = False

    async def see(self, pieces: int, chunk: Any) -> None:
        if edge := (chunk.model_extra or {}).get("edge"):
            self.edge, self.after = edge, pieces - 1
        if pieces >= KILLED_AFTER and not self._done:
            self._done = True
            await self._site.kill(self.node)


def _whole(completion: Any) -> tuple[str, int]:
    return completion.choices[0].message.content, completion.usage.completion_tokens
