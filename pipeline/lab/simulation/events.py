"""What happens next: a heap of moments, each with what is done then.

Rules: time never runs back; of two events at the same moment the one that was planned first comes first, so that a run
repeats to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

Act = Callable[[Any], object]


class Events:
    """`now` is the moment of the event at work, in seconds."""

    def __init__(self) -> None:
        """Begin at zero, with nothing planned."""
        self.now = 0.0
        self._heap: list[tuple[float, int, Act, Any]] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, when: float, act: Act, what: Any = None) -> None:
        """Plan `act(what)`; a moment that has passed is now."""
        heappush(self._heap, (max(self.now, when), next(self._numbers), act, what))

    def run(self, until: float) -> None:
        """Do everything up to and including a moment, which then is now."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, act, what = heappop(heap)
            act(what)
        self.now = until

    def drain(self) -> None:
        """Do all that is left."""
        while self._heap:
            self.run(self._heap[0][0])
