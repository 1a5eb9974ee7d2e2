"""What a run comes to: the document that `edge-release simulate --json` prints.

Rules: figures are of what arrived after the warm-up, costs of the time after it; percentiles are exact, over every
request; the same run gives the same bytes. An objective counts an answer as pipeline/peers/slo.py says: to its first
token where it is streamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.catalog.document import Document
from pipeline.errors import CatalogError
from pipeline.lab.simulation.oscillation import Control, control
from pipeline.lab.simulation.record import DENIED, POOLS, REASONS, Outcome
from pipeline.lab.simulation.run import Ran
from pipeline.peers.slo import FAULTS, OBJECTIVES, Objective
from pipeline.peers.status import Pool

USD_KWH = 0.17  # params.yaml, costs: U.S. EIA average residential price of electricity, 2024
_PLACES = 4
_LATE_MS = next(o.within_ms for o in OBJECTIVES if o.name == "global_p95")
_SERIES = 120  # points of a curve, at most
QUANTILES = (*(n / 50 for n in range(1, 50)), 0.99, 0.995, 0.999)

Array = NDArray[Any]


class Times(Document):
    """Milliseconds of `count` answers; `whole` counts to the last token, the others as the objectives do."""

    count: int
    mean: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    whole_p50: float | None = None
    whole_p95: float | None = None


class Attained(Document):
    """One objective: the share that kept it, of `asked`; `missed` is how many did not."""

    name: str
    wanted: float
    within_ms: float | None
    asked: int
    missed: int
    share: float | None
    kept: bool | None


class Cost(Document):
    """USD and kWh of the time after the warm-up; `per_1k_usd` and `per_1k_wh` for a thousand answers."""

    edge_usd: float
    nvlink_usd: float
    edge_kwh: float
    nvlink_kwh: float
    replica_hours: float
    per_1k_usd: float | None
    per_1k_wh: float | None


class Series(Document):
    """Curves over time, in hours: requests a second, share offloaded, p95 in ms, replicas wanted, all at `hours`."""

    hours: list[float]
    rate: list[float]
    offload: list[float | None]
    p95_ms: list[float | None]
    late: list[int]
    replicas: list[float]


class Results(Document):
    """The whole document."""

    schema_version: int = 1
    scenario: str
    seed: int
    seconds: float
    sites: int
    nodes: int
    requests: int
    outcomes: dict[str, int]
    offload_share: float | None
    in_system_mean: float
    times: dict[str, Times]
    kinds: dict[str, Times]
    quantiles: Annotated[dict[str, list[float]], Field(description="ms by pool, at the shares QUANTILES")]
    objectives: list[Attained]
    reasons: dict[str, int]
    refusals: dict[str, int]
    cost: Cost
    control: Control
    nodes_lost: int
    partitions: int
    series: Series


def results(ran: Ran) -> Results:
    """Return what a run comes to.

    Raises:
        CatalogError: nothing was measured.
    """
    columns = _columns(ran)
    if not len(columns["at"]):
        raise CatalogError(
            f"nothing was measured: no request came after the warm-up of {ran.scenario.warmup_s:g} s",
            hint="simulate more hours, or lower warmup_s in the scenario",
        )
    at, ms, pool, outcome = columns["at"], columns["ms"], columns["pool"], columns["outcome"]
    answered = outcome <= Outcome.DEGRADED
    edge, core = (answered & (pool == POOLS.index(p)) for p in (Pool.EDGE, Pool.NVLINK))
    times = {"all": answered, "edge": edge, "nvlink": core}
    kinds = list(ran.scenario.traffic.kinds)
    count = int(answered.sum())
    refused, why = outcome == Outcome.REFUSED, columns["why"]
    return Results(
        scenario=ran.scenario.name,
        seed=ran.seed,
        seconds=_rounded(ran.seconds),
        sites=ran.scenario.edge.sites,
        nodes=ran.scenario.edge.sites * ran.scenario.edge.nodes,
        requests=len(at),
        outcomes={o.name.lower(): int((outcome == o).sum()) for o in Outcome},
        offload_share=_share(int(core.sum()), count),
        in_system_mean=_rounded(ran.area / ran.seconds),
        times={name: _times(ms[where], columns["total"][where]) for name, where in times.items()},
        kinds={
            name: _times(ms[where], columns["total"][where])
            for number, name in enumerate(kinds)
            for where in (answered & (columns["kind"] == number),)
        },
        quantiles={name: _quantiles(ms[where]) for name, where in times.items() if where.any()},
        objectives=[_attained(o, ms, times, outcome, why) for o in OBJECTIVES],
        reasons=_named(why[answered], [str(r) for r in REASONS]),
        refusals=_named(why[refused], [str(d) for d in DENIED]),
        cost=_cost(ran, count),
        control=control(ran),
        nodes_lost=ran.faults.nodes_lost,
        partitions=ran.faults.partitions,
        series=_series(ran, columns, answered, core),
    )


def _columns(ran: Ran) -> dict[str, Array]:
    record = ran.record
    found: dict[str, Array] = {
        "at": np.frombuffer(record.at, np.float64), "ms": np.frombuffer(record.counted_ms, np.float32),
        "total": np.frombuffer(record.total_ms, np.float32), "pool": np.frombuffer(record.pool, np.int8),
        "why": np.frombuffer(record.why, np.int8), "kind": np.frombuffer(record.kind, np.int8),
        "outcome": np.frombuffer(record.outcome, np.int8),
    }  # fmt: skip
    warm = found["at"] >= ran.scenario.warmup_s
    return {name: column[warm] for name, column in found.items()}


def _times(ms: Array, total: Array) -> Times:
    if not len(ms):
        return Times(count=0)
    p50, p95, p99 = (_rounded(float(v)) for v in np.percentile(ms, [50, 95, 99]))
    whole = np.percentile(total, [50, 95])
    return Times(
        count=len(ms), mean=_rounded(float(ms.mean(dtype=np.float64))), p50=p50, p95=p95, p99=p99,
        whole_p50=_rounded(float(whole[0])), whole_p95=_rounded(float(whole[1])),
    )  # fmt: skip


def _quantiles(ms: Array) -> list[float]:
    return [_rounded(float(v)) for v in np.percentile(ms, [100 * q for q in QUANTILES])]


def _attained(objective: Objective, ms: Array, times: dict[str, Array], outcome: Array, why: Array) -> Attained:
    if objective.within_ms is None:
        asked, missed = len(outcome), _faults(outcome, why)
    else:
        found = ms[times[objective.pool or "all"]]
        asked, missed = len(found), int((found > objective.within_ms).sum())
    share = _share(asked - missed, asked)
    kept = None if share is None else share >= objective.share
    return Attained(
        name=objective.name, wanted=objective.share, within_ms=objective.within_ms, asked=asked, missed=missed,
        share=share, kept=kept,
    )  # fmt: skip


def _faults(outcome: Array, why: Array) -> int:
    """Return how many requests had no answer, through no doing of their clients."""
    faults = [number for number, reason in enumerate(DENIED) if reason in FAULTS]
    refused = (outcome == Outcome.REFUSED) & np.isin(why, faults)
    return int((refused | (outcome > Outcome.REFUSED)).sum())


def _cost(ran: Ran, answered: int) -> Cost:
    edge = [s for own in ran.sites.nodes for s in own]
    core = [s for p in ran.sites.pools for s in p.servers]
    (edge_usd, edge_kwh), (core_usd, core_kwh) = _spent(edge), _spent(core)
    return Cost(
        edge_usd=_rounded(edge_usd), nvlink_usd=_rounded(core_usd), edge_kwh=_rounded(edge_kwh),
        nvlink_kwh=_rounded(core_kwh), replica_hours=_rounded(sum(s.on_s - s.early[0] for s in core) / 3600),
        per_1k_usd=_rounded((edge_usd + core_usd) / answered * 1e3) if answered else None,
        per_1k_wh=_rounded((edge_kwh + core_kwh) / answered * 1e6) if answered else None,
    )  # fmt: skip


def _spent(servers: Sequence[Any]) -> tuple[float, float]:
    """Return USD, electricity included, and kWh."""
    kwh = usd = 0.0
    for s in servers:
        f, on_s, work_s = s.figures, s.on_s - s.early[0], s.work_s - s.early[1]
        kwh += (f.watts_idle * on_s + (f.watts_busy - f.watts_idle) * min(work_s, on_s)) / 3.6e6
        usd += f.usd_h * on_s / 3600
    return usd + kwh * USD_KWH, kwh


def _series(ran: Ran, columns: dict[str, Array], answered: Array, core: Array) -> Series:
    start = ran.scenario.warmup_s
    step = (ran.seconds - start) / _SERIES
    middles = [start + (number + 0.5) * step for number in range(_SERIES)]
    place = np.minimum(((columns["at"] - start) / step).astype(np.int64), _SERIES - 1)
    order = np.argsort(place, kind="stable")
    bounds = np.searchsorted(place[order], np.arange(_SERIES + 1))
    wanted = _wanted(ran, middles)
    found: dict[str, list[Any]] = {name: [] for name in Series.model_fields}
    for number, middle in enumerate(middles):
        here = order[bounds[number] : bounds[number + 1]]
        good = here[answered[here]]
        ms = columns["ms"][good]
        found["hours"].append(_rounded(middle / 3600))
        found["rate"].append(_rounded(len(here) / step))
        found["offload"].append(_share(int(core[good].sum()), len(good)))
        found["p95_ms"].append(_rounded(float(np.percentile(ms, 95))) if len(ms) else None)
        found["late"].append(int((ms > _LATE_MS).sum()))
        found["replicas"].append(wanted[number])
    return Series(**found)


def _wanted(ran: Ran, times: Sequence[float]) -> list[float]:
    """Return the replicas of all pools together that were asked for, at some times in their order."""
    moves = sorted((at, after - before) for p in ran.sites.pools for at, before, after in p.moves)
    now = float(sum(p.wanted - sum(after - before for _, before, after in p.moves) for p in ran.sites.pools))
    found, place = [], 0
    for time in times:
        while place < len(moves) and moves[place][0] <= time:
            now, place = now + moves[place][1], place + 1
        found.append(now)
    return found


def _named(places: Array, names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(places[places >= 0], minlength=len(names))
    return {name: int(n) for name, n in zip(names, counts, strict=False) if n}


def _share(part: int, whole: int) -> float | None:
    return _rounded(part / whole) if whole else None


def _rounded(value: float) -> float:
    return round(value, _PLACES)
