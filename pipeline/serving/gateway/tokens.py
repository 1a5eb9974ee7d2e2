"""Counting a prompt's tokens with the vocabulary of the variant that is to answer it.

Rules: no token is shorter than a byte, so a prompt's bytes bound its tokens, which is enough where the bound is within
every limit, and all there is where llama.cpp cannot be loaded; a bound says that it is one. What a chat template puts
around a message is measured once. Short texts are counted at once, long ones in a thread, so that one client's long
prompt does not hold up the others. A conversation comes again with every turn: what its short texts count is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import PipelineError
from pipeline.serving.decision import Counted

if TYPE_CHECKING:
    from pipeline.ports.llama import Session

AT_ONCE = 2048  # characters, some 0.1 ms
AROUND_MESSAGE = 8  # tokens a template may put around a message, assumed where it cannot be measured
_KEPT = 1024  # texts whose count is kept, each of at most AT_ONCE characters
_SAMPLE = "x"


class Counter(Protocol):
    """What counts tokens; `counted` says how it does where a bound is not enough."""

    counted: Counted

    async def count(self, texts: Sequence[str], *, chat: bool, enough: float = 0) -> tuple[int, Counted]:
        """Return a prompt's tokens, with what the template adds to a chat's messages, and how they were counted.

        A bound is enough where it is at most `enough` tokens.
        """
        ...


class ByteCounter:
    """An upper bound without a vocabulary."""

    counted = Counted.BYTES

    async def count(
        self,
        texts: Sequence[str],
        *,
        chat: bool,
        enough: float = 0,  # noqa: ARG002 - a bound is all there is
    ) -> tuple[int, Counted]:
        return _bytes(texts) + (AROUND_MESSAGE * len(texts) if chat else 1), Counted.BYTES


class VocabularyCounter:
    """A GGUF file's own vocabulary and chat template."""

    counted = Counted.TOKENIZER

    def __init__(self, session: Session) -> None:
        self._kept = lru_cache(_KEPT)(session.count)
        self._session = session
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokens")
        self._around = len(session.turn(_SAMPLE)) - self._plain([_SAMPLE])
        self._begin = len(session.tokenize("", add_special=True))

    async def count(self, texts: Sequence[str], *, chat: bool, enough: float = 0) -> tuple[int, Counted]:
        around = self._around * len(texts) if chat else self._begin
        if (most := _bytes(texts) + around) <= enough:
            return most, Counted.BYTES
        if sum(map(len, texts)) <= AT_ONCE:
            return self._plain(texts) + around, self.counted
        found = await asyncio.get_running_loop().run_in_executor(self._thread, self._plain, texts)
        return found + around, self.counted

    def _plain(self, texts: Sequence[str]) -> int:
        return sum([self._tokens(_printable(text)) for text in texts if text])

    def _tokens(self, text: str) -> int:
        return self._kept(text) if len(text) <= AT_ONCE else self._session.count(text)


def counter(path: Path) -> Counter:
    """Return what counts by a GGUF file's vocabulary, by bytes where this machine or the file does not allow it."""
    try:
        from pipeline.ports.llama import Session

        return VocabularyCounter(Session(path))
    except (ImportError, PipelineError):
        return ByteCounter()


def _bytes(texts: Sequence[str]) -> int:
    return sum([len(text.encode(errors="replace")) for text in texts])


def _printable(text: str) -> str:
    return text.encode(errors="replace").decode()
