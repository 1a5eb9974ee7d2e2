"""An answer as it is generated: tokens in, pieces of text out, and what is told of it at its end."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from pipeline.serving.large.asked import Finish
from pipeline.serving.large.batching import Batching, Sampling
from pipeline.serving.large.metrics import Metrics
from pipeline.serving.large.text import Text


@dataclass
class Answer:
    """One answer in the making; `tokens` are without the token that ended it, `finish` is set once it is whole."""

    prompt: Sequence[int]
    limit: int
    sampling: Sampling
    stops: tuple[str, ...] = ()
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None


class Answering:
    """Gives answers, and counts them."""

    def __init__(self, batching: Batching, tokenizer: Tokenizer, ends: frozenset[int], metrics: Metrics) -> None:
        """Take the engine, the tokenizer, the tokens that end an answer, and what is counted."""
        self._batching, self._tokenizer, self._ends, self._metrics = batching, tokenizer, ends, metrics

    async def pieces(self, answer: Answer) -> AsyncGenerator[str]:
        """Yield an answer's text as it comes, in pieces that may be empty; raises BrokenError.

        A client that leaves in the middle ends the request at the engine.
        """
        began = last = time.monotonic()
        text = Text(self._tokenizer, answer.prompt, answer.stops)
        self._metrics.prompt_tokens.inc(len(answer.prompt))
        stream = self._batching.tokens(answer.prompt, answer.limit, answer.sampling)
        try:
            async for fresh in stream:
                now = time.monotonic()
                (self._metrics.step if answer.tokens else self._metrics.first_token).observe(now - last)
                last = now
                self._metrics.generated_tokens.inc(len(fresh))
                ended = fresh[-1] in self._ends
                told = fresh[:-1] if ended else fresh
                answer.tokens += told
                piece = text.add(told)
                if ended or text.stopped:
                    answer.finish = "stop"
                yield piece
                if answer.finish:
                    break
            answer.finish = answer.finish or "length"
            if rest := "" if text.stopped else text.end():
                yield rest
        finally:
            await stream.aclose()
            self._metrics.finished[answer.finish or "abort"].inc()
            self._metrics.whole.observe(time.monotonic() - began)
