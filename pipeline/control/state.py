"""What the controller knows of a fleet at one moment.

Rules: plain frozen data, units in the names; what was not measured is None, never zero: nothing is taken away because
of it. `at` and every other time are seconds since 1970, UTC; shares are 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.peers.policy import Policy


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway.

    `policy` is that in force; `qps` are answers a second by variant, `missed_qps` those that the NVLink pool was meant
    for and did not give (degraded or refused); `edge_p50_ms` and `edge_p95_ms` how long edge answers take to begin;
    `core_usable` NVLink endpoints it would ask, `core_round_trip_ms` to the nearest of them; `burn` how fast each
    objective's budget was used up over five minutes, of those that enough was asked of. Its `site` are the edge nodes
    beside it.
    """

    name: str
    site: str = ""
    policy: Policy | None = None
    qps: Mapping[str, float] | None = None
    missed_qps: float | None = None
    edge_p50_ms: float | None = None
    edge_p95_ms: float | None = None
    core_usable: int | None = None
    core_round_trip_ms: float | None = None
    burn: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One edge node; `cpu` is the share of its processors in use, `queue_wait_ms` what a new request would wait."""

    name: str
    site: str = ""
    ready: bool | None = None
    cpu: float | None = None
    queue_wait_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """One large server, a replica of a pool: requests `running` and `waiting`, `cache` the share of its cache in use.

    `nvlink` says whether all links between its GPUs are up; `gpu_free_bytes` is the free memory of each of them.
    """

    name: str
    pool: str
    ready: bool | None = None
    running: int | None = None
    waiting: int | None = None
    queue_wait_ms: float | None = None
    cache: float | None = None
    nvlink: bool | None = None
    gpu_free_bytes: tuple[int, ...] = ()

    @property
    def fragmentation(self) -> float | None:
        """The share of free memory that is not on the GPU with most of it; None without GPUs."""
        free = sum(self.gpu_free_bytes)
        return 1 - max(self.gpu_free_bytes) / free if free else None


@dataclass(frozen=True, slots=True)
class Pool:
    """A workload of large servers: `replicas` asked for, `ready`, and `unschedulable` for want of a place."""

    name: str
    replicas: int | None = None
    ready: int | None = None
    unschedulable: int | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """A machine with GPUs: how many there are, how many nobody asked for, and how many NVLink joins at most.

    `pools` are those whose pods may be put there.
    """

    name: str
    gpus: int
    gpus_free: int | None = None
    linked: int | None = None
    pools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod on a host with GPUs; `budgets` are the disruption budgets that cover it, `batch` says it may yield."""

    namespace: str
    name: str
    uid: str
    host: str
    priority: int = 0
    gpus: int = 0
    batch: bool = False
    ending: bool = False
    budgets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Expected:
    """What a pool is expected to be asked for: the most, in requests a second, until `until`."""

    pool: str
    qps: float
    until: float


@dataclass(frozen=True, slots=True)
class State:
    """All that `decide` looks at; `budgets` is how many pods each disruption budget lets go, by `namespace/name`."""

    at: float
    gateways: tuple[Gateway, ...] = ()
    nodes: tuple[Node, ...] = ()
    servers: tuple[Server, ...] = ()
    pools: tuple[Pool, ...] = ()
    hosts: tuple[Host, ...] = ()
    pods: tuple[Pod, ...] = ()
    budgets: Mapping[str, int] = field(default_factory=dict)
    expected: tuple[Expected, ...] = ()
