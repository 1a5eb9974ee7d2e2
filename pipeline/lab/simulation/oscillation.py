"""Whether what was decided swings to and fro.

Rules: a policy flips where a gateway is given another mode; replicas flip where a pool that grew shrinks, or the other
way round, within the pause that the settings give it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.catalog.document import Document

if TYPE_CHECKING:
    from pipeline.lab.simulation.run import Ran

_DOWN_S, _PAUSE_S = 300.0, 180.0  # where nobody controls


class Control(Document):
    """What was done: policies pushed, the most that one gateway got within a cool-down; replicas up, down, flips."""

    policies: int = 0
    policies_most_in_pause: int = 0
    ups: int = 0
    downs: int = 0
    flips: int = 0
    cold_starts: int = 0
    reasons: dict[str, int] = Field(default_factory=dict)


def most_within(times: Sequence[float], window_s: float) -> int:
    """Return the most of some ordered times that lie in any window, shorter than it."""
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] >= window_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def flips(moves: Sequence[tuple[float, int, int]], within_s: float) -> int:
    """Return how often a change in one direction followed one in the other within a time."""
    found = 0
    for (before_at, a, b), (at, c, d) in pairwise(moves):
        found += (b > a) != (d > c) and at - before_at < within_s
    return found


def control(ran: Ran) -> Control:
    """Return what a run's controllers did."""
    settings = ran.scenario.controller
    down_s, pause_s = (settings.scaling.down_s, settings.routing.pause_s) if settings else (_DOWN_S, _PAUSE_S)
    moves = [p.moves for p in ran.sites.pools]
    every = [m for own in moves for m in own]
    pushes: dict[str, list[float]] = {}
    for at, gateway in (p for c in ran.controllers for p in c.pushed):
        pushes.setdefault(gateway, []).append(at)
    reasons = sum((c.reasons for c in ran.controllers), Counter[str]())
    return Control(
        policies=sum(map(len, pushes.values())),
        policies_most_in_pause=max((most_within(times, pause_s) for times in pushes.values()), default=0),
        ups=sum(after > before for _, before, after in every),
        downs=sum(after < before for _, before, after in every),
        flips=sum(flips(own, down_s) for own in moves),
        cold_starts=sum(p.cold_starts for p in ran.sites.pools),
        reasons=dict(sorted(reasons.items())),
    )
