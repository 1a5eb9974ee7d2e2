"""Latency: how long the first token, a token and an inference took, and on which machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.manifest.evidence import Measurement, Percentiles, quantile
from pipeline.report import text
from pipeline.report.durations import Durations
from pipeline.report.layout import Box, Cell, Chart, Dot, Line, Mark, Section, Span, Table, Tone, figures, words
from pipeline.report.model import Checked, Report

_CHARTS: tuple[tuple[str, str, Callable[[Measurement], Percentiles], Callable[[Durations], tuple[float, ...]]], ...] = (
    ("ttft", "Time to the first token", lambda m: m.ttft_ms, lambda d: d.ttft_ms),
    ("token", "Time per token", lambda m: m.per_token_ms, lambda d: d.per_token_ms),
    ("inference", "Time of a whole inference", lambda m: m.inference_ms, lambda d: d.inference_ms),
)


def section(report: Report) -> Section:
    """Return wall-clock figures, their distributions where they are at hand, and the machines."""
    timed = [(checked, checked.measurement) for checked in report.checks if checked.measurement]
    if not timed:
        return Section(key="latency", title="Latency")
    return Section(
        key="latency",
        title="Latency",
        says=(
            "Wall-clock time on the machines below, one prompt at a time. Emulators are not timed. Variants whose "
            "files are equal were decoded once and share their figures.",
        ),
        tables=(_table(timed), _machines(timed)),
        charts=tuple(_chart(timed, *which) for which in _CHARTS),
    )


def _table(timed: Sequence[tuple[Checked, Measurement]]) -> Table:
    columns = ("first token p50", "p95", "per token p50", "p95", "inference p50", "p95", "tokens/s", "memory", "energy")
    return Table(
        "Times (ms), peak memory, and energy of an inference where the machine can tell",
        (*words("variant", "runner"), *figures(*columns)),
        tuple(_row(checked, measured) for checked, measured in timed),
    )


def _row(checked: Checked, measured: Measurement) -> tuple[Cell, ...]:
    pairs = (measured.ttft_ms, measured.per_token_ms, measured.inference_ms)
    token, joules = measured.per_token_ms.p50, measured.joules_per_inference
    return (
        Cell(checked.variant),
        _runner(checked, measured),
        *(Cell(text.number(value)) for pair in pairs for value in (pair.p50, pair.p95)),
        Cell(text.number(1e3 / token if token else None)),
        Cell(text.size(measured.peak_rss_bytes)),
        Cell(text.NONE if joules is None else f"{text.number(joules)} J"),
    )


def _runner(checked: Checked, measured: Measurement) -> Cell:
    notes = [f"stand-in: {checked.evidence.stand_in}"] if checked.evidence.stand_in else []
    notes += [f"throttled: {', '.join(measured.throttled)}"] if measured.throttled else []
    return Cell(checked.runner, note="; ".join(notes), tone=Tone.WEAK if notes else Tone.PLAIN)


def _machines(timed: Sequence[tuple[Checked, Measurement]]) -> Table:
    found = {(checked.runner, tuple(sorted(measured.machine.items()))) for checked, measured in timed}
    return Table(
        "Machines",
        words("runner", "machine"),
        tuple(
            (Cell(runner), Cell("; ".join(f"{key}: {value}" for key, value in facts)))
            for runner, facts in sorted(found)
        ),
    )


def _chart(
    timed: Sequence[tuple[Checked, Measurement]],
    key: str,
    title: str,
    of: Callable[[Measurement], Percentiles],
    rows: Callable[[Durations], tuple[float, ...]],
) -> Chart:
    medians = [(f"{checked.variant} on {checked.runner}", of(measured).p50) for checked, measured in timed]
    return Chart(
        key=f"latency-{key}",
        title=title,
        axis="ms, logarithmic",
        legend="Box: quartiles and median; whiskers: 5th to 95th percentile. Dot and ring: p50 and p95 alone.",
        summary=text.extremes(f"{title}, median", medians, text.milliseconds),
        lines=tuple(
            Line(
                checked.variant,
                _box(rows(checked.durations)) if checked.durations else _ends(of(measured)),
                checked.runner,
            )
            for checked, measured in timed
        ),
        log=True,
    )


def _box(row: Sequence[float]) -> tuple[Mark, ...]:
    return (Box(*(quantile(row, share) for share in (0.05, 0.25, 0.5, 0.75, 0.95))),)


def _ends(figures: Percentiles) -> tuple[Mark, ...]:
    return Span(figures.p50, figures.p95), Dot(figures.p50), Dot(figures.p95, hollow=True)
