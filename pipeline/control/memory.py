"""What the controller keeps from one decision to the next, so that nothing oscillates.

Rules: frozen; everything in it can be lost: what is in force is found again at the gateways and in the cluster, and
pauses begin anew, so that a new leader does less, never more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from pipeline.control.actions import Reason


class Mode(StrEnum):
    """How a gateway prefers its pools."""

    NORMAL = "normal"
    OFFLOAD = "offload"
    EDGE_FIRST = "edge_first"


@dataclass(frozen=True, slots=True)
class Steering:
    """One gateway: its mode, since when and why; the mode it leans to and since when.

    `version` is of the policy that was asked for last; `foreign_since` is when somebody else's was first seen.
    """

    mode: Mode = Mode.NORMAL
    since: float = 0.0
    reason: Reason = Reason.FIRST
    leaning: Mode | None = None
    leaning_since: float = 0.0
    version: int = 0
    foreign_since: float | None = None

    def until(self, now: float) -> Steering:
        """Return it with no time after now."""
        if max(self.since, self.leaning_since, self.foreign_since or now) <= now:
            return self
        return replace(
            self, since=min(self.since, now), leaning_since=min(self.leaning_since, now),
            foreign_since=_until(self.foreign_since, now),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sizing:
    """One pool: the replicas that are wanted and why; when more, and fewer, were asked for last.

    Since `low_since` fewer were enough, at most `low_most`; since `idle_since` nobody asked for anything.
    """

    wanted: int
    reason: Reason = Reason.BOUNDS
    up_at: float | None = None
    down_at: float | None = None
    low_since: float | None = None
    low_most: int = 0
    idle_since: float | None = None

    def until(self, now: float) -> Sizing:
        """Return it with no time after now."""
        return replace(
            self, up_at=_until(self.up_at, now), down_at=_until(self.down_at, now),
            low_since=_until(self.low_since, now), idle_since=_until(self.idle_since, now),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Memory:
    """All of it; `evicted_at` is when pods were last asked to go."""

    gateways: Mapping[str, Steering] = field(default_factory=dict)
    pools: Mapping[str, Sizing] = field(default_factory=dict)
    evicted_at: float | None = None

    def until(self, now: float) -> Memory:
        """Return it with no time after now: where the clock was set back, pauses begin anew and do not last longer."""
        return Memory(
            {name: steering.until(now) for name, steering in self.gateways.items()},
            {name: sizing.until(now) for name, sizing in self.pools.items()},
            _until(self.evicted_at, now),
        )


def _until(at: float | None, now: float) -> float | None:
    return None if at is None else min(at, now)
