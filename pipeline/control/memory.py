"""What the controller keeps from one decision to the next, so that nothing oscillates.

Rules: frozen; everything in it can be lost: what is in force is found again at the gateways and in the cluster, and
pauses begin anew, so that a new leader does less, never more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Memory:
    """All of it; `evicted_at` is when pods were last asked to go."""

    gateways: Mapping[str, Steering] = field(default_factory=dict)
    pools: Mapping[str, Sizing] = field(default_factory=dict)
    evicted_at: float | None = None
