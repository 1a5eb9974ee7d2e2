"""One answer out of several endpoints: the next when one fails, two when one is slow, the faster wins.

Rules: nothing of a loser is used, its connection is cut; an endpoint is asked again only when there is no other, after
a pause; the number of attempts is bounded. When the caller is cancelled, every attempt is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pipeline.serving.decision import Choice, Reason
from pipeline.serving.gateway.upstream import UpstreamError

PAUSE_S = 0.1  # before an endpoint that failed is asked once more


class Closing(Protocol):
    """An answer that holds a connection."""

    def close(self) -> None:
        """Give it back."""
        ...


A = TypeVar("A", bound=Closing)


@dataclass(frozen=True, slots=True)
class Hedge:
    """After how long a second endpoint is asked, and whether the budget allows it when the time has come."""

    delay_s: float
    spend: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Won(Generic[A]):
    """The first answer; `why` is None where the first choice gave it."""

    answer: A
    choice: Choice
    why: Reason | None
    failures: int


async def first(
    choices: Sequence[Choice], attempt: Callable[[Choice], Awaitable[A]], attempts: int, hedge: Hedge | None = None
) -> Won[A]:
    """Return the first answer of the choices, asked in their order.

    Raises:
        UpstreamError: the last failure, when every attempt failed.
    """
    race = _Race(choices, attempt, attempts)
    try:
        return await race.run(hedge)
    finally:
        race.end()


class _Race(Generic[A]):
    def __init__(self, choices: Sequence[Choice], attempt: Callable[[Choice], Awaitable[A]], attempts: int) -> None:
        self._choices = choices
        self._attempt = attempt
        self._most = attempts
        self._begun = 0
        self._failures = 0
        self._running: dict[asyncio.Future[A], tuple[Choice, Reason | None]] = {}

    async def run(self, hedge: Hedge | None) -> Won[A]:
        self._begin(None)
        while True:
            waits = hedge.delay_s if hedge and len(self._running) == 1 else None
            done, _ = await asyncio.wait(self._running, timeout=waits, return_when=asyncio.FIRST_COMPLETED)
            if not done and hedge and self._may_hedge() and hedge.spend():
                self._begin(Reason.HEDGE)
            if not done:
                hedge = None
                continue
            for task in done:
                choice, why = self._running.pop(task)
                error = task.exception()
                if error is None:
                    return Won(task.result(), choice, why, self._failures)
                await self._failed(error)

    async def _failed(self, error: BaseException) -> None:
        self._failures += 1
        if not isinstance(error, UpstreamError):
            raise error
        if self._running:
            return
        if self._begun >= self._most:
            raise error
        if self._begun >= len(self._choices):
            await asyncio.sleep(PAUSE_S)
        self._begin(Reason.RETRY)

    def _may_hedge(self) -> bool:
        return self._begun < min(len(self._choices), self._most)

    def _begin(self, why: Reason | None) -> None:
        choice = self._choices[self._begun % len(self._choices)]
        self._begun += 1
        self._running[asyncio.ensure_future(self._attempt(choice))] = choice, why

    def end(self) -> None:
        """Call off what still runs; an answer that came at the last moment is closed."""
        for task in self._running:
            task.add_done_callback(_discard)
            task.cancel()


def _discard(task: asyncio.Future[A]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()
