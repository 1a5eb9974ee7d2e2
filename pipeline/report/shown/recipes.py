"""Recipes that were searched for: what they cost and lose beside the presets, and where the loss comes from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from pipeline.manifest.search import Found, Point, Tuned, unbettered
from pipeline.report import text
from pipeline.report.layout import Cell, Cloud, Grid, Section, Series, Table, figures, words
from pipeline.report.model import Report
from pipeline.report.subject import Part

ROWS = 40  # matrices shown one by one; where there are more, their layers are taken together


def section(report: Report) -> Section:
    """Return every search, its front and its matrices."""
    found = [(part, part.search) for part in report.subject.parts if part.search]
    if not found:
        return Section(key="recipes", title="Recipes")
    return Section(
        key="recipes",
        title="Recipes",
        says=(
            "How these variants' tensor types were found: the mean KL (nats) from the unquantized tier was made as "
            "small as a budget of bytes and instructions allows. Figures here are of the calibration examples, which "
            "the search sees; those of the golden prompts, which it does not, stand under quality.",
        ),
        tables=(
            Table(
                "What was found, beside the best preset of no more bytes",
                (
                    *words("variant", "budget"),
                    *figures("matrices", "KL predicted", "bound", "measured", "preset's KL", "ratio", "instructions"),
                ),
                tuple(_row(part, search) for part, search in found),
            ),
            *_tuned(found),
        ),
        charts=tuple(chart for part, search in found for chart in (_front(part, search), _losses(part, search))),
    )


def _row(part: Part, found: Found) -> tuple[Cell, ...]:
    chosen, peer = found.chosen, found.peer
    budget = ", ".join(
        str(found.budget[key]) for key in ("preset", "bytes_max", "bytes_per_token_max") if found.budget.get(key)
    )
    return (
        Cell(part.variant.name),
        Cell(budget),
        Cell(text.size(chosen.size)),
        Cell(text.number(chosen.predicted_kl)),
        Cell(text.number(found.bound), note="of predictions"),
        Cell(text.number(chosen.measured.mean_kl)),
        Cell(text.number(peer.measured.mean_kl if peer else None), note=peer.name if peer else ""),
        Cell(text.number(chosen.measured.mean_kl / peer.measured.mean_kl if peer and peer.measured.mean_kl else None)),
        Cell(text.number(_per(chosen, peer))),
    )


def _tuned(found: Sequence[tuple[Part, Found]]) -> tuple[Table, ...]:
    """What tuning to families is worth, where that was asked."""
    rows = tuple(_verdict(part, tuned) for part, search in found for tuned in search.tuned)
    head = (*words("variant", "family"), *figures("examples", "KL", "KL tuned", "ratio"), *words("pays"))
    caption = "Recipes tuned to a prompt family, on examples that the tuning did not see"
    return (Table(caption, head, rows),) if rows else ()


def _verdict(part: Part, tuned: Tuned) -> tuple[Cell, ...]:
    return (
        Cell(part.variant.name),
        Cell(tuned.family),
        Cell(f"{tuned.examples:,}"),
        Cell(text.number(tuned.general)),
        Cell(text.number(tuned.own)),
        Cell(text.number(tuned.ratio), note=f"{text.number(tuned.low)} to {text.number(tuned.high)}"),
        Cell("yes, it is released") if tuned.pays else Cell("no, it is not built"),
    )


def _per(chosen: Point, peer: Point | None) -> float | None:
    if peer is None or not peer.instructions_per_token:
        return None
    return chosen.instructions_per_token / peer.instructions_per_token


def _front(part: Part, found: Found) -> Cloud:
    name, peer = part.variant.name, found.peer
    told = f"{name}: {text.number(found.chosen.measured.mean_kl)} nats at {text.size(found.chosen.size)}."
    if peer:
        told += f" The best preset of no more bytes, {peer.name}: {text.number(peer.measured.mean_kl)}."
    return Cloud(
        key=f"front-{name}",
        title=f"{name}: KL and size",
        x_axis="MB of all matrices",
        y_axis="mean KL, nats",
        legend="Line: the best found. Rings: presets, with the importance matrix and without. Cross: chosen.",
        summary=told,
        series=(
            Series(tuple(unbettered(_at(p) for p in found.front)), joined=True),
            Series(tuple(_at(p) for p in found.presets)),
            Series((_at(found.chosen),), cross=True),
        ),
    )


def _at(point: Point) -> tuple[float, float]:
    return point.size / 1e6, point.measured.mean_kl


def _losses(part: Part, found: Found) -> Grid:
    kinds = sorted({kind for losses in found.losses.values() for kind in losses})
    rows: dict[str, list[str]] = defaultdict(list)
    for tensor in found.losses:
        rows[re.sub(r"^blk\.\d+\.", "blk.*.", tensor) if len(found.losses) > ROWS else tensor].append(tensor)
    values = tuple(
        tuple(
            fmean(known) if (known := [found.losses[t][kind] for t in tensors if kind in found.losses[t]]) else None
            for kind in kinds
        )
        for tensors in rows.values()
    )
    chosen = tuple(
        frozenset(place for place, kind in enumerate(kinds) if kind in {found.types.get(t) for t in tensors})
        for tensors in rows.values()
    )
    worst = max(
        ((max(v for v in row if v is not None), name) for name, row in zip(rows, values, strict=True)), default=None
    )
    return Grid(
        key=f"losses-{part.variant.name}",
        title=f"{part.variant.name}: what each matrix loses",
        legend="Darker: more KL, logarithmic, were this matrix alone of this type. Framed: chosen.",
        summary=f"Most sensitive: {worst[1]}." if worst else "",
        rows=tuple(rows),
        columns=tuple(kinds),
        values=values,
        chosen=chosen,
    )
