"""Seeded draws and the held-out split.

Rules: the same seed gives the same draws on every machine and Python version (SplitMix64, integers only);
whether operands are held out depends on the operands alone, so no seed, wording or order can move them
across the split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

HELD_OUT_ONE_IN = 10
_MASK = (1 << 64) - 1


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclass
class Rng:
    """SplitMix64 (Steele, Lea and Flood, 2014, doi:10.1145/2660193.2660195), seeded by a text.

    `state` is a 64-bit integer and the whole state there is.
    """

    state: int

    @classmethod
    def of(cls, seed: str) -> Rng:
        """A generator that any text seeds."""
        return cls(_digest(seed))

    def below(self, bound: int) -> int:
        """An integer in [0, bound); the bias of the remainder, below 2**-50 here, is accepted."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & _MASK
        mixed = self.state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return (mixed ^ (mixed >> 31)) % bound

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + self.below(high - low + 1)

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each as likely."""
        return options[self.below(len(options))]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different options in random order (the head of a Fisher-Yates shuffle)."""
        pool = list(options)
        for place in range(count):
            other = place + self.below(len(pool) - place)
            pool[place], pool[other] = pool[other], pool[place]
        return pool[:count]


def is_held_out(family: str, *operands: str | int) -> bool:
    """True for the tenth of all operand tuples that training never sees."""
    return _digest("/".join((family, *map(str, operands)))) % HELD_OUT_ONE_IN == 0
