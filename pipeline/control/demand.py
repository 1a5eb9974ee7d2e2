"""What each pool is asked for, and the replicas that takes.

Rules: by Little's law requests that hold a slot are their rate times how long they hold it; what was not measured makes
the whole unknown; requests that wait are to be worked off within `drain_s`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.control.settings import PoolSettings, Scaling
from pipeline.control.state import Gateway, Server


@dataclass(frozen=True, slots=True)
class Load:
    """A pool's load: `qps` asked of it, requests `waiting`, the least `queue_wait_ms` of its ready servers.

    `broken` are ready servers whose NVLink is not whole. None where it is unknown.
    """

    qps: float | None = None
    waiting: int | None = None
    queue_wait_ms: float | None = None
    broken: int = 0

    @property
    def idle(self) -> bool | None:
        """Whether nobody asks for anything; None where that is unknown."""
        if self.qps is None:
            return None
        return self.qps == 0 and not self.waiting


def loads(gateways: Sequence[Gateway], servers: Iterable[Server], pools: Iterable[PoolSettings]) -> dict[str, Load]:
    """Return the load of each pool."""
    behind: dict[str, list[Server]] = {}
    for server in servers:
        behind.setdefault(server.pool, []).append(server)
    return {p.name: _load(p, gateways, behind.get(p.name, [])) for p in pools}


def replicas(pool: PoolSettings, qps: float, waiting: int, share: float, drain_s: float) -> int:
    """Return the replicas at which a share of the slots is in use."""
    held = qps * pool.service_s + waiting * pool.service_s / max(drain_s, pool.service_s)
    return math.ceil(round(held / (pool.slots * share), 6))


def enough(pool: PoolSettings, load: Load, scaling: Scaling, share: float) -> int | None:
    """Return the replicas for a load; None where it is unknown."""
    if load.qps is None:
        return None
    return replicas(pool, load.qps, load.waiting or 0, share, scaling.drain_s)


def _load(pool: PoolSettings, gateways: Sequence[Gateway], servers: Sequence[Server]) -> Load:
    ready = [s for s in servers if s.ready]
    waits = [s.queue_wait_ms for s in ready if s.queue_wait_ms is not None]
    waiting = [s.waiting for s in ready if s.waiting is not None]
    return Load(
        qps=_qps(pool, gateways),
        waiting=sum(waiting) if waiting or not ready else None,
        queue_wait_ms=min(waits, default=None),
        broken=sum(s.nvlink is False for s in ready),
    )


def _qps(pool: PoolSettings, gateways: Sequence[Gateway]) -> float | None:
    """Return what all gateways send a pool, and would have; None unless every one of them was heard of."""
    total = 0.0
    for gateway in gateways:
        if gateway.qps is None or (pool.missed and gateway.missed_qps is None):
            return None
        total += sum(gateway.qps.get(variant, 0.0) for variant in pool.variants)
        total += (gateway.missed_qps or 0.0) if pool.missed else 0.0
    return total if gateways else None
