"""Load that does not wait: requests leave at fixed times whatever became of those before them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from pipeline.catalog.golden import GoldenPrompt

LONG_TOKENS = 160  # of a stream that is likely to be met in its middle
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Question:
    """A request, and the golden prompt that its answer is compared with; past its own end a long one says no sense."""

    body: dict[str, Any]
    golden: GoldenPrompt

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    def is_right(self, text: str) -> bool:
        """Return whether an answer is, or begins with, what was expected."""
        return text.startswith(self.golden.expected) if "ignore_eos" in self.body else self.golden.accepts(text)


@dataclass(frozen=True)
class Outcome:
    """How a request fared: seconds since the load began, ms from the time at which it was to leave.

    `failed` says why there is no complete answer, `right` whether it is the golden one.
    """

    at: float
    stream: bool
    first_ms: float | None
    total_ms: float
    failed: str | None = None
    degraded: bool = False
    right: bool | None = None


def questions(golden: Sequence[GoldenPrompt], large: float) -> Callable[[int], Question]:
    """Return the request of each number: half streamed, every fifth of those long, a share for the large tier."""
    every = round(1 / large) if large else 0

    def question(number: int) -> Question:
        prompt = golden[number * 7 % len(golden)]
        body: dict[str, Any] = {
            "model": "large" if every and number % every == every - 1 else "auto",
            "messages": [{"role": "user", "content": prompt.prompt}],
            "max_tokens": prompt.max_tokens,
            "temperature": 0,
        }
        if number % 2 == 0:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if number % 10 == 0:
            return Question(body | {"model": "tiny", "max_tokens": LONG_TOKENS, "ignore_eos": True}, prompt)
        return Question(body, prompt)

    return question


async def load(url: str, question: Callable[[int], Question], rate: float, seconds: float) -> list[Outcome]:
    """Send requests at a rate for some seconds, and wait for all of them."""
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began, tasks = time.monotonic(), []
        for number in range(int(rate * seconds)):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(_ask(session, url + CHAT, question(number), due, due - began)))
        return await asyncio.gather(*tasks)


async def _ask(session: aiohttp.ClientSession, url: str, question: Question, due: float, at: float) -> Outcome:
    first: list[float] = []
    text, failed, degraded = "", None, False
    try:
        async with session.post(url, json=question.body) as answer:
            degraded = "x-edge-degraded" in answer.headers
            if answer.status != 200:
                failed = f"{answer.status} {_code(await answer.read())}"
            elif question.stream:
                text, failed = await _stream(answer, first)
            else:
                text = (await answer.json())["choices"][0]["message"]["content"]
    except (aiohttp.ClientError, TimeoutError, ValueError, LookupError) as e:
        failed = f"{type(e).__name__}: {e}"
    right = None if failed else question.is_right(text)
    first_ms = (first[0] - due) * 1000 if first else None
    return Outcome(at, question.stream, first_ms, (time.monotonic() - due) * 1000, failed, degraded, right)


async def _stream(answer: aiohttp.ClientResponse, first: list[float]) -> tuple[str, str | None]:
    """Return a stream's text and why it is not complete, if so; the time of its first text goes to `first`."""
    pieces: list[str] = []
    finished = done = False
    async for line in answer.content:
        data = line.strip().removeprefix(b"data: ")
        if data == b"[DONE]":
            done = True
        elif data:
            chunk = json.loads(data)
            if "error" in chunk:
                return "", f"in the stream: {chunk['error'].get('code')}"
            for choice in chunk["choices"]:
                piece = choice["delta"].get("content")
                if piece and not first:
                    first.append(time.monotonic())
                pieces.append(piece or "")
                finished = finished or choice.get("finish_reason") is not None
    return "".join(pieces), None if finished and done else f"it ended early (finish {finished}, done {done})"


def _code(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return repr(body[:80])
