"""Continuous batching over all ranks: transformers' own manager, and what this server asks of it.

Rules: every rank runs the same batches; rank 0 takes requests and hands them to the others, step by step. Requests of
different settings share a batch: greedy ones are sampled from their single best token. A manager that died is never
asked again: its process is to end (transformers, `generation/continuous_batching`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.model import hf

PAGE = 64  # tokens of a block of the cache; prompts share whole blocks
BATCH = 2048  # tokens of all requests decoded together


class BrokenError(Exception):
    """The engine failed in the middle of an answer, or is gone."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; `temperature` 0 is greedy, `top_k` 0 takes all of the vocabulary."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    @classmethod
    def of(cls, folder: Path) -> Sampling:
        """Return what a model's `generation_config.json` says; greedy where it does not sample."""
        said = hf.read_json(folder / "generation_config.json", missing_ok=True)
        if not said.get("do_sample"):
            return cls()
        found = {key: said[key] for key in ("temperature", "top_p", "top_k") if said.get(key) is not None}
        return replace(cls(temperature=1.0), **found)

    def processors(self, vocabulary: int) -> dict[str, Any]:
        """Return the manager's words for it."""
        if self.temperature == 0.0 or self.top_k == 1:
            return {"temperature": 1.0, "top_k": 1, "top_p": 1.0}
        top_k = min(self.top_k, vocabulary) if self.top_k > 0 else vocabulary
        return {"temperature": float(self.temperature), "top_k": top_k, "top_p": float(self.top_p)}


@dataclass(frozen=True)
class Load:
    """Requests that are decoded and that wait, and the share of the cache's blocks in use."""

    running: int
    waiting: int
    cache: float


def start(model: Any, *, slots: int, context: int) -> Any:
    """Return a started manager for a rank's model, of so many requests at once of so many tokens each.

    The cache holds them all, and takes no more of a GPU than that: another release may have to stand beside this one.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    # Every request says its own; a processor is there only where the default is not neutral.
    defaults = GenerationConfig(do_sample=True, temperature=0.5, top_k=2, top_p=0.5, eos_token_id=-1, pad_token_id=0)
    config = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=-(-slots * context // PAGE), max_batch_tokens=BATCH, max_requests_per_batch=slots,
        per_request_processors=True, seed=0,
    )  # fmt: skip
    manager = model.init_continuous_batching(generation_config=defaults, continuous_batching_config=config)
    manager.start()
    return manager


class Batching:
    """The manager on rank 0, from an event loop."""

    def __init__(self, manager: Any, ends: Sequence[int]) -> None:
        """Take a started manager; `ends` are the tokens that end an answer."""
        self._manager, self._ends = manager, list(ends)
        self.vocabulary = int(manager.model.config.get_text_config().vocab_size)
        self._numbers = itertools.count()

    @property
    def alive(self) -> bool:
        return bool(self._manager.is_running())

    async def tokens(self, ids: Sequence[int], limit: int, sampling: Sampling) -> AsyncGenerator[list[int]]:
        """Yield an answer's tokens as they come, its end token among them; leaving early ends the request.

        Raises:
            BrokenError: the engine failed.
        """
        name, news = f"r{next(self._numbers)}", asyncio.Queue[Any]()
        self._manager.register_result_handler(name, news.put_nowait)
        self._manager.add_request(
            list(ids), request_id=name, max_new_tokens=limit, streaming=True, eos_token_id=self._ends,
            **sampling.processors(self.vocabulary),
        )  # fmt: skip
        given, over = 0, False
        try:
            while not over:
                found = await self._next(news)
                if found.error is not None:
                    raise BrokenError(found.error)
                over = found.is_finished()
                if fresh := found.generated_tokens[given:]:
                    given += len(fresh)
                    yield fresh
        finally:
            if not over:
                self._manager.cancel_request(name)
                self._forget(name)

    async def _next(self, news: asyncio.Queue[Any]) -> Any:
        while True:
            with suppress(TimeoutError):
                return await asyncio.wait_for(news.get(), 1.0)
            if not self.alive:
                raise BrokenError("the engine ended")

    def _forget(self, name: str) -> None:
        router = self._manager.output_router
        with router._lock:
            router.result_handlers.pop(name, None)

    def load(self) -> Load:
        """Return how busy the engine is, as far as it has begun."""
        processor = self._manager.batch_processor
        if processor is None:
            return Load(0, self._manager.input_queue.qsize(), 0.0)
        waiting = len(processor.scheduler.waiting_requests) + self._manager.input_queue.qsize()
        used = 1.0 - float(processor.cache.compute_free_capacity())
        return Load(len(processor.scheduler.active_requests), waiting, min(1.0, max(0.0, used)))
