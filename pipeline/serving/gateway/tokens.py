"""Counting a prompt's tokens with the vocabulary of the variant that is to answer it.

Rules: where llama.cpp cannot be loaded the count is an upper bound, the prompt's bytes, and says so: no token is
shorter than a byte. What a chat template puts around a message is measured once. Short texts are counted at once, long
ones in a thread, so that one client's long prompt does not hold up the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import PipelineError
from pipeline.serving.decision import Counted

if TYPE_CHECKING:
    from pipeline.ports.llama import Session

AT_ONCE = 2048  # characters, some 0.1 ms
AROUND_MESSAGE = 8  # tokens a template may put around a message, assumed where it cannot be measured
_SAMPLE = "x"


class Counter(Protocol):
    """What counts tokens."""

    counted: Counted

    async def count(self, texts: Sequence[str], *, chat: bool) -> int:
        """Return the tokens of a prompt, or of a chat's messages with what the template adds."""
        ...


class ByteCounter:
    """An upper bound without a vocabulary."""

    counted = Counted.BYTES

    async def count(self, texts: Sequence[str], *, chat: bool) -> int:
        around = AROUND_MESSAGE * len(texts) if chat else 1
        return sum(len(text.encode(errors="replace")) for text in texts) + around


class VocabularyCounter:
    """A GGUF file's own vocabulary and chat template."""

    counted = Counted.TOKENIZER

    def __init__(self, session: Session) -> None:
        self._session = session
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokens")
        self._around = len(session.turn(_SAMPLE)) - self._plain([_SAMPLE])
        self._begin = len(session.tokenize("", add_special=True))

    async def count(self, texts: Sequence[str], *, chat: bool) -> int:
        around = self._around * len(texts) if chat else self._begin
        if sum(map(len, texts)) <= AT_ONCE:
            return self._plain(texts) + around
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._plain, texts) + around

    def _plain(self, texts: Sequence[str]) -> int:
        return sum(len(self._session.tokenize(_printable(text), add_special=False)) for text in texts if text)


def counter(path: Path) -> Counter:
    """Return what counts by a GGUF file's vocabulary, by bytes where this machine or the file does not allow it."""
    try:
        from pipeline.ports.llama import Session

        return VocabularyCounter(Session(path))
    except (ImportError, PipelineError):
        return ByteCounter()


def _printable(text: str) -> str:
    return text.encode(errors="replace").decode()
