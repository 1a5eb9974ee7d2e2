"""What a lab found, as one self-contained page.

Rules: every figure was measured in the run that the page is of; what the simulation says of the tuned policy stands
beside what was measured with it, and is called by its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.lab import journal
from pipeline.lab.laboratory import Findings, Phase
from pipeline.peers.status import Pool
from pipeline.report import text
from pipeline.report.layout import Bar, Cell, Chart, Curve, Curves, Line, Section, Table, Tone, figures, words
from pipeline.report.page import Sheet, render
from pipeline.report.shown.heading import Fact

_SHARES = tuple(n / 100 for n in range(1, 100))


def html(found: Findings, machine: Mapping[str, str], release: str) -> str:
    """Return the page; `machine` are plain facts of it, `release` says which one was served."""
    failed = found.failures
    sheet = Sheet(
        kind="Lab",
        title=release,
        outcome=f"{text.counted(failed, 'request')} failed" if failed else "No request failed",
        passed=not failed,
        facts=tuple(Fact(name, value) for name, value in machine.items()),
        notes=("All processes share one machine: its figures compare policies and faults, and say little of a fleet.",),
        sections=tuple(_sections(found)),
        command="edge-release lab",
    )
    return render(sheet)


def document(found: Findings) -> dict[str, Any]:
    """Return the same for programs."""
    return {
        "schema_version": 1,
        "failed": found.failures,
        "steps": [asdict(step) for step in found.steps],
        "loads": [
            {
                "name": phase.name, "fault": phase.fault, "rate": phase.wanted.rate, "seconds": phase.wanted.seconds,
                "requests": phase.asked, "failed": phase.failures,
                "times_ms": {
                    pool or "all": asdict(times)
                    for pool in (*Pool, None)
                    if (times := journal.times(phase.requests, pool)) is not None
                },
                "objectives": {o.name: share for o, share in journal.objectives(phase.requests)},
                "reasons": dict(journal.reasons(phase.requests)),
            }
            for phase in found.phases
        ],
        "tuned": found.tuned and found.tuned.model_dump(mode="json"),
    }  # fmt: skip


def _sections(found: Findings) -> Iterator[Section]:
    yield _loads(found.phases)
    yield _objectives(found.phases)
    yield _reasons(found.phases[0])
    if found.tuned is not None:
        yield _tuning(found)
    rows = tuple((Cell(step.name), Cell(f"{step.seconds:.0f}")) for step in found.steps)
    yield Section(
        key="steps", title="Steps", tables=(Table("Seconds each step took", (*words("step"), *figures("s")), rows),)
    )


def _loads(phases: Sequence[Phase]) -> Section:
    rows = tuple(
        (
            Cell(phase.name, phase.fault or ""),
            Cell(f"{phase.asked:,}"),
            Cell(f"{phase.failures:,}", tone=Tone.BAD if phase.failures else Tone.GOOD),
            Cell(f"{sum(r.degraded for r in phase.requests):,}"),
            Cell(f"{sum(r.failures > 0 for r in phase.requests):,}"),
            *(_times(phase, pool) for pool in (Pool.EDGE, Pool.NVLINK, None)),
        )
        for phase in phases
    )
    columns = (
        *words("load"), *figures("requests", "failed", "degraded", "tried again", "edge p50 / p95, ms",
                                 "NVLink p50 / p95, ms", "all p50 / p95, ms"),
    )  # fmt: skip
    curves = tuple(_curve(phase) for phase in (phases[0], phases[-1]) if journal.times(phase.requests))
    return Section(
        key="loads",
        title="Loads",
        says=("An answer's time is that to its first token where it is streamed, and to its last where it is not.",),
        tables=(Table("What users and gateway saw", columns, rows),),
        charts=(
            Curves(
                "distribution", "Time to answer", "ms, logarithmic", "share of answers",
                "Share of answers that took no longer, before and after tuning.", _medians(phases), curves, log_x=True,
            ),
        ),
    )  # fmt: skip


def _times(phase: Phase, pool: Pool | None) -> Cell:
    found = journal.times(phase.requests, pool)
    return Cell(text.NONE) if found is None else Cell(f"{found.p50:.0f} / {found.p95:.0f}")


def _curve(phase: Phase) -> Curve:
    taken = sorted(r.begun_ms for r in journal.answered(phase.requests))
    return Curve(phase.name, tuple((taken[int(share * len(taken))], share) for share in _SHARES))


def _medians(phases: Sequence[Phase]) -> str:
    named = [(p.name, t.p50) for p in phases if (t := journal.times(p.requests)) is not None]
    return text.extremes("Median", named, text.milliseconds)


def _objectives(phases: Sequence[Phase]) -> Section:
    first, last = (dict(journal.objectives(phase.requests)) for phase in (phases[0], phases[-1]))
    rows = tuple(
        (
            Cell(o.name),
            Cell(f"{o.share:.1%} " + (f"within {o.within_ms:.0f} ms" if o.within_ms else "answered")),
            *(_judged(found[o], o.share) for found in (first, last)),
        )
        for o in first
    )
    columns = (*words("objective", "promise"), *figures(f"kept by, {phases[0].name}", f"kept by, {phases[-1].name}"))
    return Section(key="objectives", title="Objectives", tables=(Table("Share that kept it", columns, rows),))


def _judged(share: float | None, wanted: float) -> Cell:
    if share is None:
        return Cell(text.NONE)
    return Cell(f"{share:.1%}", tone=Tone.GOOD if share >= wanted else Tone.BAD)


def _reasons(phase: Phase) -> Section:
    found, total = journal.reasons(phase.requests), max(len(phase.requests), 1)
    rows = tuple((Cell(name), Cell(f"{count:,}"), Cell(f"{count / total:.1%}")) for name, count in found)
    lines = tuple(Line(name, (Bar(100 * count / total),)) for name, count in found)
    summary = text.extremes("Share", [(n, c / total) for n, c in found], text.share)
    return Section(
        key="reasons",
        title="Where requests went, and why",
        tables=(Table(f"While {phase.name}", (*words("pool and reason"), *figures("requests", "share")), rows),),
        charts=(Chart("reasons", "Reasons", "% of requests", "As x-edge-reason says.", summary, lines),),
    )


def _tuning(found: Findings) -> Section:
    tuned = found.tuned
    assert tuned is not None, "there was a search"
    values = tuple(
        (Cell(name, code=True), Cell(f"{tuned.was[name]:g}"), Cell(f"{value:g}"))
        for name, value in tuned.values.items()
    )
    gains = tuple(
        (Cell(f.name), Cell(f"{f.before:,.4g}"), Cell(f"{f.after:,.4g}"), Cell(f"{f.low:+,.3g} to {f.high:+,.3g}"))
        for f in tuned.figures
    )
    return Section(
        key="tuning",
        title="Tuning",
        says=(
            f"{tuned.tried} candidates on a simulated site as fast as this one was measured to be; judged on "
            f"{text.counted(len(tuned.seeds), 'seed')} that the search did not see.",
        ),
        tables=(
            Table("Thresholds", (*words("threshold"), *figures("was", "tuned")), values),
            Table("What the simulation says", (*words("figure"), *figures("before", "after", "change, 95 %")), gains),
        ),
    )
