"""Requests that wait for a place, interactive ones first.

Rules: the queue is bounded; whoever waited longest in its class is woken first and asks routing again; nobody waits
longer than it was told.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import count

from pipeline.serving.decision import Priority

LOOK_S = 0.25  # servers may get room without a request of ours having ended
RANK = {Priority.INTERACTIVE: 0, Priority.BATCH: 1}

Ticket = tuple[int, int]


class Waiting:
    """A bounded queue by priority."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._numbers = count()
        self._futures: dict[Ticket, asyncio.Future[None]] = {}

    def __len__(self) -> int:
        return len(self._futures)

    def ticket(self, priority: Priority) -> Ticket:
        """Return a place in the order of arrival, which a request keeps while it waits again."""
        return RANK[priority], next(self._numbers)

    async def wait(self, ticket: Ticket, patience_s: float) -> bool:
        """Wait until woken; return whether it makes sense to ask again: not when the queue is full or time is up."""
        if patience_s <= 0 or len(self) >= self._most:
            return False
        future = self._futures[ticket] = asyncio.get_running_loop().create_future()
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(future, min(patience_s, LOOK_S))
        finally:
            del self._futures[ticket]
        return True

    def wake(self) -> None:
        """Wake the first in the queue."""
        first = min((ticket for ticket, future in self._futures.items() if not future.done()), default=None)
        if first is not None:
            self._futures[first].set_result(None)
