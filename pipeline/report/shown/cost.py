"""Cost of 1,000 inferences, and whose prices it follows from."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report import text
from pipeline.report.estimates import Price
from pipeline.report.layout import Cell, Chart, Dot, Line, Mark, Section, Span, Table, Tick, figures, ticked, words
from pipeline.report.model import Checked, Report


def section(report: Report) -> Section:
    """Return what the gate wrote down as cost, and the prices with their sources."""
    priced = [
        (checked, checked.row.cost_per_1k_usd)
        for checked in report.checks
        if checked.row and checked.row.cost_per_1k_usd is not None
    ]
    if not priced:
        return Section(key="cost", title="Cost")
    return Section(
        key="cost",
        title="Cost",
        says=(
            "Of 1,000 median inferences: the device's price over its life, and the power it draws in that time. Energy "
            "is measured where the machine can tell; elsewhere it is the watts below for that time.",
        ),
        tables=(_table(priced), _prices(report.prices)),
        charts=(_chart(priced),),
    )


def _table(priced: Sequence[tuple[Checked, float]]) -> Table:
    return Table(
        "Cost of 1,000 inferences",
        (*words("variant", "runner"), *figures("USD", "before", "inference p50"), *words("energy")),
        tuple(_row(checked, cost) for checked, cost in priced),
    )


def _row(checked: Checked, cost: float) -> tuple[Cell, ...]:
    measured, before = checked.measurement, checked.before
    joules = measured.joules_per_inference if measured else None
    return (
        Cell(checked.variant),
        Cell(checked.runner, note=f"stand-in: {checked.evidence.stand_in}" if checked.evidence.stand_in else ""),
        Cell(text.number(cost)),
        Cell(text.number(before.cost_per_1k_usd if before else None)),
        Cell(text.milliseconds(measured.inference_ms.p50 if measured else None)),
        Cell("assumed from watts" if joules is None else f"measured: {text.number(joules)} J"),
    )


def _prices(prices: Sequence[Price]) -> Table:
    return Table(
        "Prices",
        (*words("runner"), *figures("device (USD)", "life (hours)", "watts", "USD per kWh"), *words("source")),
        tuple(_price(price) for price in prices),
    )


def _price(price: Price) -> tuple[Cell, ...]:
    cost = price.cost
    if cost is None:
        other = "not known here: the release was judged by other prices than this project's, or by a project elsewhere"
        return (Cell(price.runner), *(Cell(text.NONE) for _ in range(4)), Cell(other))
    return (
        Cell(price.runner),
        Cell(f"{cost.device_usd:,g}"),
        Cell(f"{cost.life_hours:,g}"),
        Cell(f"{cost.watts:,g}"),
        Cell(f"{cost.usd_per_kwh:g}"),
        Cell(cost.source),
    )


def _chart(priced: Sequence[tuple[Checked, float]]) -> Chart:
    lines = []
    for checked, cost in priced:
        last = checked.before.cost_per_1k_usd if checked.before else None
        before: list[Mark] = [Span(min(cost, last), max(cost, last)), Tick(last)] if last else []
        lines.append(Line(checked.variant, (*before, Dot(cost)), checked.runner))
    named = [(f"{checked.variant} on {checked.runner}", cost) for checked, cost in priced]
    return Chart(
        key="cost",
        title="Cost of 1,000 inferences",
        axis="USD, logarithmic",
        legend="Dot: this release." + ticked(lines),
        summary=text.extremes("Cost of 1,000 inferences", named, text.usd),
        lines=tuple(lines),
        log=True,
    )
