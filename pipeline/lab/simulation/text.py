"""What a run comes to, for a terminal: rows of words."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.lab.simulation.results import Results, Times
from pipeline.report import text

TIMES = ("answered", "requests", "mean", "p50", "p95", "p99", "whole p50", "whole p95")
OBJECTIVES = ("objective", "promise", "kept by", "missed", "")


def title(found: Results) -> str:
    """Return what was simulated in a line."""
    fleet = f"{text.counted(found.sites, 'site')}, {text.counted(found.nodes, 'node')}"
    return f"{found.scenario}, seed {found.seed}: {found.seconds / 3600:,.2f} h, {fleet}, {found.requests:,} requests"


def times(found: Results) -> list[list[str]]:
    """Return how long answers took, by pool and by kind, in ms."""
    rows = {**found.times, **({f"  {k}": t for k, t in found.kinds.items()} if len(found.kinds) > 1 else {})}
    return [_times(name, row) for name, row in rows.items() if row.count]


def _times(name: str, row: Times) -> list[str]:
    figures = (row.mean, row.p50, row.p95, row.p99, row.whole_p50, row.whole_p95)
    return [name, f"{row.count:,}", *(text.number(f) for f in figures)]


def objectives(found: Results) -> list[list[str]]:
    """Return which objectives were kept."""
    return [
        [
            o.name,
            f"{o.wanted:.1%} " + (f"within {o.within_ms:.0f} ms" if o.within_ms else "answered"),
            text.NONE if o.share is None else f"{o.share:.2%}",
            f"{o.missed:,}",
            "" if o.kept is None else "kept" if o.kept else "MISSED",
        ]
        for o in found.objectives
    ]


def facts(found: Results) -> list[tuple[str, str]]:
    """Return the rest, each with its name."""
    cost, control = found.cost, found.control
    ends = ", ".join(f"{name} {count:,}" for name, count in found.outcomes.items() if count)
    return [
        ("outcomes", ends),
        ("reasons", _counts(found.reasons)),
        *([("refusals", _counts(found.refusals))] if found.refusals else []),
        ("offloaded", text.NONE if found.offload_share is None else f"{found.offload_share:.1%} of all answers"),
        ("cost", f"{text.usd(cost.per_1k_usd)} for 1,000 answers ({_parts(cost.edge_usd, cost.nvlink_usd, 'USD')})"),
        ("energy", f"{text.number(cost.per_1k_wh)} Wh for 1,000 ({_parts(cost.edge_kwh, cost.nvlink_kwh, 'kWh')})"),
        ("replicas", f"{cost.replica_hours:.2f} hours, {control.ups} up, {control.downs} down, {control.flips} flips, "
         f"{text.counted(control.cold_starts, 'cold start')}"),
        ("policies", f"{control.policies} pushed, at most {control.policies_most_in_pause} to a gateway in its pause"),
        ("faults", f"{text.counted(found.nodes_lost, 'node')} lost, {text.counted(found.partitions, 'partition')}"),
    ]  # fmt: skip


def _parts(edge: float, core: float, unit: str) -> str:
    return f"edge {edge:,.2f}, NVLink {core:,.2f} {unit}"


def _counts(counts: dict[str, int]) -> str:
    total = sum(counts.values()) or 1
    ranked: Sequence[tuple[str, int]] = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {count / total:.1%}" for name, count in ranked) or text.NONE
