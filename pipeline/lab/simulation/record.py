"""What became of each request, in columns: one entry for each that arrived."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import IntEnum

from pipeline.peers.status import Pool
from pipeline.serving.decision import Denied, Reason

POOLS = tuple(Pool)
REASONS = tuple(Reason)
DENIED = tuple(Denied)


class Outcome(IntEnum):
    """How a request ended."""

    ANSWERED = 0
    DEGRADED = 1
    REFUSED = 2
    FAILED = 3
    TIMEOUT = 4


@dataclass(slots=True)
class Record:
    """`why` is a place in REASONS of what was answered, in DENIED of what was refused; times in s and ms.

    `counted_ms` is the answer's time as the objectives count it: to its first token where it is streamed.
    """

    at: array[float] = field(default_factory=lambda: array("d"))
    ended: array[float] = field(default_factory=lambda: array("d"))
    counted_ms: array[float] = field(default_factory=lambda: array("f"))
    total_ms: array[float] = field(default_factory=lambda: array("f"))
    pool: array[int] = field(default_factory=lambda: array("b"))
    why: array[int] = field(default_factory=lambda: array("b"))
    kind: array[int] = field(default_factory=lambda: array("b"))
    outcome: array[int] = field(default_factory=lambda: array("b"))
    retried: array[int] = field(default_factory=lambda: array("b"))

    def __len__(self) -> int:
        return len(self.at)
