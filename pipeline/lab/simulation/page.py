"""What a run comes to, as one self-contained page with plots.

Rules: the page shows what the document says and nothing else, and with it what went in: the figures with their sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.lab.simulation import text as words_of
from pipeline.lab.simulation.figures import Figures
from pipeline.lab.simulation.results import QUANTILES, Results
from pipeline.lab.simulation.scenario import Scenario
from pipeline.report import text
from pipeline.report.layout import (
    Bar,
    Cell,
    Chart,
    Column,
    Curve,
    Curves,
    Line,
    Section,
    Table,
    Tone,
    figures,
    words,
)
from pipeline.report.page import Sheet, render
from pipeline.report.shown.heading import Fact

_POOLS = {"edge": "edge", "nvlink": "NVLink", "all": "all"}
_GIVEN = (
    "overhead_ms", "prompt_ms", "prompt_token_ms", "token_ms", "slots", "slowdown", "spread", "kept", "context",
    "watts_idle", "watts_busy", "usd_h",
)  # fmt: skip


def html(found: Results, scenario: Scenario) -> str:
    """Return the page."""
    missed = [o.name for o in found.objectives if o.kept is False]
    sheet = Sheet(
        kind="Simulation",
        title=f"{found.scenario}, seed {found.seed}",
        outcome=f"Missed: {', '.join(missed)}" if missed else "Every objective was kept",
        passed=not missed,
        facts=tuple(_facts(found, scenario)),
        notes=(),
        sections=(
            _objectives(found), _times(found), _traffic(found), _reasons(found), _spent(found), _inputs(scenario),
        ),
        command="edge-release simulate",
    )  # fmt: skip
    return render(sheet)


def _facts(found: Results, scenario: Scenario) -> Iterator[Fact]:
    yield Fact("scenario", scenario.about)
    yield Fact("simulated", f"{found.seconds / 3600:,.2f} hours from {scenario.start:%Y-%m-%d %H:%M} UTC")
    yield Fact("fleet", f"{text.counted(found.sites, 'site')}, {text.counted(found.nodes, 'node')}")
    yield Fact("requests", f"{found.requests:,}; in the system {text.number(found.in_system_mean)} in the mean")
    for name, value in words_of.facts(found):
        if name in {"outcomes", "refusals", "offloaded", "faults"}:
            yield Fact(name, value)


def _objectives(found: Results) -> Section:
    rows = words_of.objectives(found)
    cells = tuple(tuple(_judged(cell) for cell in row) for row in rows)
    columns = (*words("objective", "promise"), *figures("kept by", "missed"), Column("", numeric=False))
    return Section(
        key="objectives",
        title="Objectives",
        says=("An answer's time is that to its first token where it is streamed, and to its last where it is not.",),
        tables=(Table("Share of answers that kept each promise", columns, cells),),
    )


def _judged(word: str) -> Cell:
    return Cell(word, tone={"kept": Tone.GOOD, "MISSED": Tone.BAD}.get(word, Tone.PLAIN))


def _times(found: Results) -> Section:
    rows = tuple(tuple(Cell(cell.strip()) for cell in row) for row in words_of.times(found))
    shown = {name: found.quantiles[name] for name in _POOLS if name in found.quantiles and name != "all"}
    curves = tuple(Curve(_POOLS[name], tuple(zip(ms, QUANTILES, strict=True))) for name, ms in shown.items())
    p95 = _curve("all", found, found.series.p95_ms)
    return Section(
        key="times",
        title="Time to answer",
        tables=(Table("Milliseconds", (*words("answered"), *figures(*words_of.TIMES[1:])), rows),),
        charts=(
            Curves(
                "distribution", "Distribution", "ms, logarithmic", "share of answers",
                "Share of answers that took no longer.", _spread(found), curves, log_x=True,
            ),
            Curves(
                "p95", "95th percentile over time", "hours", "ms, logarithmic", "Of all answers that arrived then.",
                _range("95th percentile", found.series.p95_ms, "ms"), (p95,), log_y=True,
            ),
        ),
    )  # fmt: skip


def _spread(found: Results) -> str:
    named = [(_POOLS[n], t.p50) for n, t in found.times.items() if n != "all" and t.p50 is not None]
    return text.extremes("Median", named, text.milliseconds) if named else "No answers."


def _traffic(found: Results) -> Section:
    series = found.series
    rate, offload = _curve("requests/s", found, series.rate), _curve("offloaded", found, series.offload)
    late = _curve("late", found, [float(n) for n in series.late])
    charts = [
        Curves("rate", "Requests", "hours", "requests a second", "As they arrived.",
               _range("Requests", series.rate, "a second"), (rate,)),
        Curves("offload", "Offloaded", "hours", "share of answers", "Answered by the NVLink pool.",
               _range("Share", series.offload, ""), (offload,)),
        Curves("late", "Answers later than 150 ms", "hours", "answers", f"In each of {len(series.late)} parts.",
               _range("Late answers", [float(n) for n in series.late], ""), (late,)),
        Curves("replicas", "Replicas", "hours", "replicas", "Asked for, of all pools together.",
               _range("Replicas", series.replicas, ""), (_curve("replicas", found, series.replicas),), steps=True),
    ]  # fmt: skip
    control = found.control
    says = (
        f"{text.counted(control.policies, 'policy')} pushed" if control.policies == 1 else
        f"{control.policies:,} policies pushed"
    )  # fmt: skip
    rows = tuple((Cell(name), Cell(f"{count:,}")) for name, count in control.reasons.items())
    tables = (Table("Actions of the controllers", (*words("action"), *figures("times")), rows),) if rows else ()
    return Section(
        key="time",
        title="Over time",
        says=(
            f"{says}, at most {control.policies_most_in_pause} to one gateway within its pause; replicas went "
            f"{control.ups} times up, {control.downs} times down, {control.flips} of these against the last "
            f"change within the pause; {text.counted(control.cold_starts, 'cold start')}.",
        ),
        charts=tuple(charts),
        tables=tables,
    )


def _reasons(found: Results) -> Section:
    total = sum(found.reasons.values()) or 1
    ranked = sorted(found.reasons.items(), key=lambda pair: -pair[1])
    rows = tuple((Cell(name), Cell(f"{count:,}"), Cell(f"{count / total:.2%}")) for name, count in ranked)
    lines = tuple(Line(name, (Bar(100 * count / total),)) for name, count in ranked)
    summary = text.extremes("Share", [(n, c / total) for n, c in ranked], text.share) if ranked else "No answers."
    return Section(
        key="reasons",
        title="Where requests went, and why",
        tables=(Table("Reasons of route", (*words("reason"), *figures("answers", "share")), rows),),
        charts=(Chart("reasons", "Reasons", "% of answers", "As x-edge-reason says.", summary, lines),)
        if lines
        else (),
    )


def _spent(found: Results) -> Section:
    cost = found.cost
    rows = (
        ("edge", text.usd(cost.edge_usd), f"{cost.edge_kwh:,.3f} kWh"),
        ("NVLink", text.usd(cost.nvlink_usd), f"{cost.nvlink_kwh:,.3f} kWh"),
        ("1,000 answers", text.usd(cost.per_1k_usd), f"{text.number(cost.per_1k_wh)} Wh"),
    )
    return Section(
        key="cost",
        title="Cost and energy",
        says=(f"Machines by the hour and electricity; replicas were on for {cost.replica_hours:,.2f} hours.",),
        tables=(
            Table("Spent", (*words(""), *figures("cost", "energy")), tuple(tuple(map(Cell, row)) for row in rows)),
        ),
    )


def _inputs(scenario: Scenario) -> Section:
    used = [scenario.edge.figures] if scenario.edge.nodes else []
    used += [scenario.core.figures] if scenario.core else []
    return Section(
        key="inputs",
        title="What went in",
        says=("Nothing but these figures and the scenario's traffic decides how long an answer takes.",),
        tables=tuple(_sources(name, scenario.speeds(name)) for name in used),
    )


def _sources(name: str, found: Figures) -> Table:
    rows = tuple(
        (Cell(key), Cell(f"{getattr(found, key):g}"), Cell(found.sources.get(key, text.NONE))) for key in _GIVEN
    )
    return Table(f"{name}: {found.machine}", (*words("figure"), *figures("value"), *words("source")), rows)


def _curve(label: str, found: Results, values: Sequence[float | None]) -> Curve:
    return Curve(label, tuple(zip(found.series.hours, values, strict=True)))


def _range(what: str, values: Sequence[float | None], unit: str) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return f"{what}: nothing."
    return f"{what}: from {text.number(min(known))} to {text.number(max(known))} {unit}".rstrip() + "."
