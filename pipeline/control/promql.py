"""What a Prometheus knows of gateways, nodes and large servers, asked in one query for each figure.

Rules: as for what is scraped: what a query does not bring is unknown. Gateways are known by their admin port's address
(label `instance`), large servers by the job `large`, nodes by the job `node` and their label `site`, if any. The burn
rates are those of manifests/telemetry/rules/slo.yml, of all gateways together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipeline.control.fetch import Fetch
from pipeline.control.gateways import Gateways
from pipeline.control.scrape import Seen, policy_of, wait_ms
from pipeline.control.settings import GatewayEntry, PoolSettings, Settings
from pipeline.control.state import Gateway, Node, Server
from pipeline.ports import prometheus

Labels = Mapping[str, str]
Vector = list[tuple[Labels, float]]

_BEGUN = (
    'rate(gateway_time_to_first_token_seconds_bucket{pool="edge"}[5m]) or rate(gateway_request_duration_seconds_bucket'
    '{pool="edge", stream="false", outcome=~"answered|degraded"}[5m])'
)
_BURN = "slo:burn:5m and on (slo) slo:asked:rate5m * 300 >= %d"  # of those that enough was asked of
_QUERIES = {
    "qps": "sum by (instance, variant) (rate(gateway_variant_total[1m]))",
    "missed": 'sum by (instance) (rate(gateway_refused_total{code="core_down"}[1m]))',
    "elsewhere": 'sum by (instance) (rate(gateway_route_total{pool="edge", reason=~"degraded|core_down"}[1m]))',
    "heard": "sum by (instance) (gateway_policy_version)",
    "usable": 'sum by (instance) (gateway_endpoint_usable{pool="nvlink"})',
    "trip": 'min by (instance) (gateway_endpoint_round_trip_seconds{pool="nvlink"} and gateway_endpoint_usable == 1)',
    "p50": f"histogram_quantile(0.5, sum by (instance, le) ({_BEGUN}))",
    "p95": f"histogram_quantile(0.95, sum by (instance, le) ({_BEGUN}))",
    "ready": 'edge_node_state{state="ready"}',
    "up": 'up{job=~"node|large"}',
    "cpu": "edge_node_cpu_ratio",
    "slots": "edge_node_slots",
    "busy": "edge_node_slots_busy",
    "queued": "edge_node_queue_length",
    "nvlink": "min by (instance) (edge_node_nvlink_active) == bool max by (instance) (edge_node_nvlink_active)",
}


@dataclass
class PromQL:
    """Looks at everything through one Prometheus."""

    fetch: Fetch
    settings: Settings
    gateways: Gateways
    url: str

    async def look(self) -> Seen:
        """Return what is known now; raises nothing."""
        queries = {**_QUERIES, "burn": _BURN % self.settings.looking.burn_requests}
        found = dict(zip(queries, await asyncio.gather(*map(self._query, queries.values())), strict=True))
        gateways = await asyncio.gather(*(self._gateway(entry, found) for entry in await self.gateways.entries()))
        return Seen(tuple(gateways), nodes(found, self.settings), servers(found, self.settings.pools))

    async def _query(self, query: str) -> Vector | None:
        said = await self.fetch.get(f"{self.url}/api/v1/query", params={"query": query}, own=False)
        return vector(said.json())

    async def _gateway(self, entry: GatewayEntry, found: Mapping[str, Vector | None]) -> Gateway:
        policy = policy_of((await self.fetch.get(f"{entry.url}/admin/policy", name=entry.tls_name)).json())
        where = urlsplit(entry.url).netloc
        heard = one(found["heard"], where) is not None
        spared = 0.0 if heard else None  # a counter that never counted is absent, its gateway is there
        refused, elsewhere = (one(found[name], where, spared) for name in ("missed", "elsewhere"))
        rates = {r["variant"]: v for r, v in found["qps"] or [] if r.get("instance") == where and "variant" in r}
        usable, trip = one(found["usable"], where), one(found["trip"], where)
        return Gateway(
            entry.name, entry.site, policy=policy, qps=rates if heard and found["qps"] is not None else None,
            missed_qps=None if refused is None or elsewhere is None else refused + elsewhere,
            edge_p50_ms=_ms(one(found["p50"], where)), edge_p95_ms=_ms(one(found["p95"], where)),
            core_usable=None if usable is None else int(usable), core_round_trip_ms=_ms(trip),
            burn={r["slo"]: v for r, v in found["burn"] or [] if "slo" in r} or None,
        )  # fmt: skip


def vector(document: Any) -> Vector | None:
    """Return an answer's samples that are numbers; None where it is none."""
    try:
        return [(sample.labels, sample.value) for sample in prometheus.samples(document)]
    except ValueError:
        return None


def one(rows: Vector | None, instance: str, absent: float | None = None) -> float | None:
    """Return an instance's sample; `absent` where an answer has none."""
    if rows is None:
        return None
    return next((number for labels, number in rows if labels.get("instance") == instance), absent)


def nodes(found: Mapping[str, Vector | None], settings: Settings) -> tuple[Node, ...]:
    """Return the edge nodes."""
    by = {name: _by_instance(found[name]) for name in ("ready", "cpu", "slots", "busy", "queued")}
    told = []
    for labels, up in found["up"] or []:
        if labels.get("job") != "node":
            continue
        where = labels.get("instance", "")
        ready = by["ready"].get(where) if up else 0.0
        busy, queued, slots = (by[name].get(where) for name in ("busy", "queued", "slots"))
        wait = None if busy is None or queued is None else busy + queued
        told.append(
            Node(
                name=where,
                site=labels.get("site", ""),
                ready=None if ready is None else bool(ready),
                cpu=by["cpu"].get(where),
                queue_wait_ms=None if wait is None else wait_ms(int(wait), int(slots or 1), settings.policy.service_ms),
            )
        )
    return tuple(told)


def servers(found: Mapping[str, Vector | None], pools: list[PoolSettings]) -> tuple[Server, ...]:
    """Return the large servers; the label `controller_pool` says whose they are where there are several pools."""
    by = {name: _by_instance(found[name]) for name in ("ready", "slots", "busy", "queued", "nvlink")}
    named = {pool.name: pool for pool in pools}
    told = []
    for labels, up in found["up"] or []:
        pool = named.get(labels.get("controller_pool", pools[0].name if len(pools) == 1 else ""))
        if labels.get("job") != "large" or pool is None:
            continue
        where = labels.get("instance", "")
        ready = by["ready"].get(where) if up else 0.0
        running, waiting = by["busy"].get(where), by["queued"].get(where)
        known = running is not None and waiting is not None
        load, slots = int((running or 0) + (waiting or 0)), int(by["slots"].get(where) or pool.slots)
        told.append(
            Server(
                name=where,
                pool=pool.name,
                ready=None if ready is None else bool(ready),
                running=None if running is None else int(running),
                waiting=None if waiting is None else int(waiting),
                queue_wait_ms=wait_ms(load, slots, pool.service_s * 1000) if known else None,
                nvlink=None if where not in by["nvlink"] else by["nvlink"][where] == 1,
            )
        )
    return tuple(told)


def _by_instance(rows: Vector | None) -> dict[str, float]:
    return {labels.get("instance", ""): number for labels, number in rows or []}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
