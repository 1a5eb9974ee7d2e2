"""One answer out of several endpoints: the next when one fails, two when one is slow, the faster wins.

Rules: nothing of a loser is used, its connection is cut; an endpoint is asked again only when there is no other, after
a pause; the number of attempts is bounded. What one server rejects another may answer: the first one's rejection is the
answer unless a second endpoint is at work, any other's only where nobody answers. When the caller is cancelled, every
attempt is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pipeline.serving.decision import Choice, Reason
from pipeline.serving.gateway.upstream import Fault, UpstreamError

PAUSE_S = 0.1  # before an endpoint that failed is asked once more


class Closing(Protocol):
    """An answer that holds a connection."""

    @property
    def is_rejection(self) -> bool:
        """Whether it says what is wrong with the request."""
        ...

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
    race, won = _Race(choices, attempt, attempts), None
    try:
        won = await race.run(hedge)
        return won
    finally:
        race.end(won)


def rejected(answer: Closing) -> UpstreamError:
    """Return a rejection as a failure that is not the endpoint's fault; the answer is closed."""
    answer.close()
    return UpstreamError(Fault.STATUS, "the server rejects the request", counts=False)


class _Race(Generic[A]):
    """The first attempt runs in the caller's own task, for a task of its own costs as much as a decision."""

    def __init__(self, choices: Sequence[Choice], attempt: Callable[[Choice], Awaitable[A]], attempts: int) -> None:
        owner = asyncio.current_task()
        assert owner is not None, "requests are handled in tasks"
        self._owner = owner
        self._choices = choices
        self._attempt = attempt
        self._most = attempts
        self._begun = 0
        self._failures = 0
        self._timer: asyncio.TimerHandle | None = None
        self._second: asyncio.Future[Won[A]] | None = None
        self._rejection: Won[A] | None = None
        self._beaten = False
        self._settled = False

    async def run(self, hedge: Hedge | None) -> Won[A]:
        if hedge is not None and min(len(self._choices), self._most) > 1:
            self._timer = asyncio.get_running_loop().call_later(hedge.delay_s, self._hedge, hedge)
        why: Reason | None = None
        while True:
            choice = self._next()
            try:
                return self._taken(Won(await self._attempt(choice), choice, why, self._failures))
            except asyncio.CancelledError:
                if not self._beaten or self._second is None:
                    raise
                self._owner.uncancel()
                return self._second.result()
            except UpstreamError as e:
                if (found := await self._failed(e)) is not None:
                    return found
            why = Reason.RETRY

    def _taken(self, won: Won[A]) -> Won[A]:
        """Return an answer, but keep a rejection for later; raises UpstreamError then."""
        if not won.answer.is_rejection or (won.why is None and self._second is None):
            return won
        if won.why is None:
            self._most = self._begun
        self._rejection = won
        raise rejected(won.answer)

    async def _failed(self, error: UpstreamError) -> Won[A] | None:
        """Return what the second endpoint answers, if it was asked; None where another attempt may follow."""
        self._failures += 1
        second = self._stop_hedging()
        if second is not None:
            try:
                return await second
            except UpstreamError as e:
                self._second, self._failures, error = None, self._failures + 1, e
        if self._begun >= self._most:
            if self._rejection is not None:
                return self._rejection
            raise error
        if self._begun >= len(self._choices):
            await asyncio.sleep(PAUSE_S)
        return None

    def _next(self) -> Choice:
        choice = self._choices[self._begun % len(self._choices)]
        self._begun += 1
        return choice

    def _hedge(self, hedge: Hedge) -> None:
        if not self._settled and hedge.spend():
            self._second = asyncio.ensure_future(self._hedged(self._next()))
            self._second.add_done_callback(self._faster)

    async def _hedged(self, choice: Choice) -> Won[A]:
        return self._taken(Won(await self._attempt(choice), choice, Reason.HEDGE, self._failures))

    def _faster(self, second: asyncio.Future[Won[A]]) -> None:
        if self._settled or second.cancelled() or second.exception() is not None:
            return
        self._beaten = True
        self._owner.cancel()

    def _stop_hedging(self) -> asyncio.Future[Won[A]] | None:
        """Leave the second attempt, where there is one, to be waited for: it no longer interrupts."""
        self._settled = True
        if self._timer is not None:
            self._timer.cancel()
        return self._second

    def end(self, won: Won[A] | None) -> None:
        """Call off what still runs; an answer that came at the last moment is closed."""
        second = self._stop_hedging()
        if second is None or (won is not None and won.why is Reason.HEDGE):
            return
        second.add_done_callback(_discard)
        second.cancel()


def _discard(task: asyncio.Future[Won[A]]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().answer.close()
