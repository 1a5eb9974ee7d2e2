"""What the controller may do, each with its reason.

Rules: an action names its target and the state it leads to, so that doing it twice is doing it once; reasons are a
fixed set, for they are labels of metrics; `detail` has the numbers, for people.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pipeline.peers.policy import Policy


class Reason(StrEnum):
    """Why something is done; docs/controller.md explains each."""

    FIRST = "first"
    RESTORED = "restored"
    EDGE_BUSY = "edge_busy"
    EDGE_BURN = "edge_burn"
    EDGE_CALM = "edge_calm"
    CORE_FULL = "core_full"
    CORE_FAR = "core_far"
    CORE_DOWN = "core_down"
    CORE_NEAR = "core_near"
    DEMAND = "demand"
    QUEUE_WAIT = "queue_wait"
    SLO_BURN = "slo_burn"
    NVLINK_DOWN = "nvlink_down"
    EXPECTED = "expected"
    LOW_DEMAND = "low_demand"
    COLD = "cold"
    COST_CAP = "cost_cap"
    BOUNDS = "bounds"
    BURST = "burst"


@dataclass(frozen=True, slots=True)
class SetPolicy:
    """Put a routing policy in force at one gateway."""

    gateway: str
    policy: Policy
    reason: Reason
    detail: str = ""
    kind: Literal["set_policy"] = "set_policy"


@dataclass(frozen=True, slots=True)
class Scale:
    """Ask for this many replicas of a pool, instead of `was`."""

    pool: str
    replicas: int
    was: int
    reason: Reason
    detail: str = ""
    kind: Literal["scale"] = "scale"


@dataclass(frozen=True, slots=True)
class PreWarm:
    """Ask for more replicas of a pool before they are needed."""

    pool: str
    replicas: int
    was: int
    reason: Reason
    detail: str = ""
    kind: Literal["pre_warm"] = "pre_warm"


@dataclass(frozen=True, slots=True)
class Evict:
    """Ask Kubernetes to evict one pod, which it refuses where a disruption budget forbids it."""

    namespace: str
    pod: str
    uid: str
    pool: str
    reason: Reason
    detail: str = ""
    kind: Literal["evict"] = "evict"


Action = SetPolicy | Scale | PreWarm | Evict
Actions = tuple[Action, ...]
