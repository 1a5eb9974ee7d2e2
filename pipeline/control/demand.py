"""What each pool is asked for, and the replicas that takes.

Rules: by Little's law requests that hold a slot are their rate times how long they hold it; what was not measured makes
the whole unknown, and what is known of it the least it can be; requests that wait are to be worked off within
`drain_s`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.control.settings import PoolSettings
from pipeline.control.state import Gateway, Server


@dataclass(frozen=True, slots=True)
class Load:
    """A pool's load: `qps` asked of it, requests `waiting`, the least `queue_wait_ms` of its ready servers.

    `least_qps` is what those gateways ask that were heard of; `broken` are ready servers whose NVLink is not whole.
    None where it is unknown.
    """

    qps: float | None = None
    least_qps: float | None = None
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


def _load(pool: PoolSettings, gateways: Sequence[Gateway], servers: Sequence[Server]) -> Load:
    ready = [s for s in servers if s.ready]
    waits = [s.queue_wait_ms for s in ready if s.queue_wait_ms is not None]
    waiting = [s.waiting for s in ready if s.waiting is not None]
    asked = [_qps(pool, gateway) for gateway in gateways]
    known = [qps for qps in asked if qps is not None]
    return Load(
        qps=sum(known) if asked and len(known) == len(asked) else None,
        least_qps=sum(known) if known else None,
        waiting=sum(waiting) if waiting or not ready else None,
        queue_wait_ms=min(waits, default=None),
        broken=sum(s.nvlink is False for s in ready),
    )


def _qps(pool: PoolSettings, gateway: Gateway) -> float | None:
    """Return what a gateway sends a pool, and would have; None where that is unknown."""
    if gateway.qps is None or (pool.missed and gateway.missed_qps is None):
        return None
    sent = sum(gateway.qps.get(variant, 0.0) for variant in pool.variants)
    return sent + ((gateway.missed_qps or 0.0) if pool.missed else 0.0)
