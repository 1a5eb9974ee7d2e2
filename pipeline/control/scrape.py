"""What gateways say of themselves and of the servers behind them, and what those servers say.

Rules: a part that is missing is unknown; a server that several gateways know is taken once, from the first that hears
of it; a waiting request's time is foreseen as gateways do, by what is ahead of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.catalog.document import check
from pipeline.control.fetch import Fetch
from pipeline.control.gateways import Gateways
from pipeline.control.samples import Labels, Rates, Samples, parse, value, whole
from pipeline.control.settings import GatewayEntry, Looking, PoolSettings, Settings
from pipeline.control.state import Gateway, Node, Server
from pipeline.errors import CatalogError
from pipeline.peers.policy import Policy
from pipeline.peers.status import Pool, State

_MISSED = frozenset({"degraded", "core_down"})


@dataclass(frozen=True)
class Member:
    """A server as a gateway tells of it."""

    name: str
    url: str
    pool: Pool
    state: State
    usable: bool
    variant: str | None = None
    round_trip_ms: float = 0.0
    slots: int = 0
    busy: int = 0
    queued: int = 0
    cpu: float | None = None


@dataclass(frozen=True)
class Seen:
    """All that was seen."""

    gateways: tuple[Gateway, ...]
    nodes: tuple[Node, ...]
    servers: tuple[Server, ...]


@dataclass(frozen=True)
class Listed:
    """What a gateway's admin port says of its servers."""

    endpoints: list[Member]


_LISTED = TypeAdapter(Listed)


@dataclass
class Scrape:
    """Looks at everything; remembers counters for rates."""

    fetch: Fetch
    settings: Settings
    gateways: Gateways
    clock: Callable[[], float]
    _rates: dict[str, Rates] = field(default_factory=dict)

    async def look(self) -> Seen:
        """Return what is seen now; raises nothing."""
        entries = await self.gateways.entries()
        found = await asyncio.gather(*(self._gateway(entry) for entry in entries))
        nodes: dict[str, Node] = {}
        large: dict[str, Member] = {}
        for entry, (_, members) in zip(entries, found, strict=True):
            for member in members:
                if member.pool is Pool.EDGE:
                    nodes.setdefault(member.url, node(member, entry.site, self.settings.policy))
                else:
                    large.setdefault(member.url, member)
        servers = await asyncio.gather(*(self._server(member) for member in large.values()))
        return Seen(tuple(g for g, _ in found), tuple(nodes.values()), tuple(s for s in servers if s is not None))

    async def _gateway(self, entry: GatewayEntry) -> tuple[Gateway, list[Member]]:
        ask, url = partial(self.fetch.get, name=entry.tls_name), entry.url
        policy, members, status, metrics = await asyncio.gather(
            ask(f"{url}/admin/policy"), ask(f"{url}/admin/endpoints"), ask(f"{url}/status"), ask(f"{url}/metrics")
        )
        seen = Gateway(entry.name, entry.site, policy=policy_of(policy.json()))
        listed: Listed | None = _checked(_LISTED, members.json())
        found = None if listed is None else listed.endpoints
        rates = self._rates.setdefault(entry.name, Rates(self.settings.looking.rate_s))
        samples = _samples(metrics.text())
        if samples is not None:
            rates.look(self.clock(), samples)
            seen = replace(seen, qps=qps(rates), missed_qps=missed(rates))
        seen = replace(seen, **told(status.json(), self.settings.looking), **core(found))
        return seen, found or []

    async def _server(self, member: Member) -> Server | None:
        pool = pool_of(self.settings.pools, member.variant)
        if pool is None:
            return None
        samples = _samples((await self.fetch.get(f"{member.url}/metrics")).text())
        return server(member, pool, samples)


def node(member: Member, site: str, policy: Policy) -> Node:
    """Return an edge node as a gateway tells of it."""
    ready = member.state is State.READY and member.usable
    wait = wait_ms(member.busy + member.queued, member.slots, policy.service_ms) if ready else None
    return Node(member.name, site, ready, member.cpu, wait)


def server(member: Member, pool: PoolSettings, samples: Samples | None) -> Server:
    """Return a large server as it tells of itself; without that, as a gateway tells of it."""
    ready, samples = member.state is State.READY and member.usable, samples or {}
    running, waiting = whole(samples, "edge_node_slots_busy"), whole(samples, "edge_node_queue_length")
    if running is None or waiting is None:
        running, waiting = member.busy, member.queued
    slots = whole(samples, "edge_node_slots") or member.slots or pool.slots
    wait = wait_ms(running + waiting, slots, pool.service_s * 1000)
    links = [count for _, count in samples.get("edge_node_nvlink_active", [])]
    free = tuple(int(count) for _, count in samples.get("edge_node_gpu_memory_free_bytes", []))
    whole_links = len(set(links)) == 1 and links[0] > 0 if links else None
    return Server(
        name=member.name, pool=pool.name, ready=ready, running=running, waiting=waiting, queue_wait_ms=wait,
        cache=value(samples, "vllm:kv_cache_usage_perc"), nvlink=whole_links,
        gpu_free_bytes=free,
    )  # fmt: skip


def wait_ms(load: int, slots: int, service_ms: float) -> float:
    """Return how long a new request would wait behind a load."""
    slots = max(slots, 1)
    return max(load - slots + 1, 0) * service_ms / slots


def pool_of(pools: Iterable[PoolSettings], variant: str | None) -> PoolSettings | None:
    """Return the pool that serves a variant."""
    return next((p for p in pools if variant in p.variants), None)


def qps(rates: Rates) -> dict[str, float] | None:
    """Return a gateway's requests a second by variant."""
    return rates.by("gateway_variant_total", "variant")


def missed(rates: Rates) -> float | None:
    """Return a gateway's requests a second that the NVLink pool was meant for and did not answer."""
    elsewhere = rates.total("gateway_route_total", _is_missed)
    refused = rates.total("gateway_refused_total", lambda labels: labels.get("code") == "core_down")
    return None if elsewhere is None or refused is None else elsewhere + refused


def told(status: Any, looking: Looking) -> dict[str, Any]:
    """Return what a gateway's `/status` says of its promises; the burn of too few requests is chance, and left out."""
    try:
        asked = [o for o in status["objectives"] if o["asked_5m"] >= looking.burn_requests]
        burn = {o["objective"]: float(o["burn_5m"]) for o in asked}
        edge = next(p for p in status["pools"] if p["pool"] == Pool.EDGE)
        return {"burn": burn, "edge_p50_ms": edge["p50_ms"], "edge_p95_ms": edge["p95_ms"]}
    except (KeyError, TypeError, ValueError, StopIteration):
        return {}


def core(members: list[Member] | None) -> dict[str, Any]:
    """Return how many large servers a gateway would ask, and how far the nearest is."""
    if members is None:
        return {}
    usable = [m.round_trip_ms for m in members if m.pool is Pool.NVLINK and m.usable]
    return {"core_usable": len(usable), "core_round_trip_ms": min(usable, default=None)}


def _is_missed(labels: Labels) -> bool:
    return labels.get("pool") == Pool.EDGE and labels.get("reason") in _MISSED


def _samples(text: str | None) -> Samples | None:
    try:
        return None if text is None else parse(text)
    except ValueError:
        return None


def policy_of(document: Any) -> Policy | None:
    """Return the policy that a gateway says is in force; None where that is none."""
    try:
        return None if document is None else check(document, Policy, "policy")
    except CatalogError:
        return None


def _checked(adapter: TypeAdapter[Any], document: Any) -> Any:
    if document is None:
        return None
    try:
        return adapter.validate_python(document)
    except ValidationError:
        return None
