"""Charts as inline SVG, by matplotlib without a display.

Rules: nothing of the user's settings, no clock, no randomness: the same chart gives the same bytes. Colours are the
page's own variables, so that a dark scheme and print change them; text stays text, in the page's font, and is never
read as a formula. Ids are unique on the page and stand only where something refers to them; no style leaves the chart.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

from pipeline.report import text
from pipeline.report.layout import Bar, Box, Chart, Cloud, Curves, Dot, Drawn, Grid, Line, Mark, Span, Tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Drawn in these colours, shown in the page's variables of these names (page.css).
_NAMES = ("ink", "muted", "grid", "paper", "plain", "host", "emulated", "pi5", "nvlink", "riscv")
_COLOURS = {name: f"#0101{n:02x}" for n, name in enumerate(_NAMES, start=1)}
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],  # matplotlib's own: widths are known on every machine
    "font.size": 9.5,
    "text.parse_math": False,
    "axes.edgecolor": _COLOURS["muted"],
    "axes.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": _COLOURS["ink"],
    "axes.labelcolor": _COLOURS["ink"],
    "xtick.color": _COLOURS["muted"],
    "xtick.labelcolor": _COLOURS["ink"],
    "ytick.color": _COLOURS["muted"],
    "ytick.labelcolor": _COLOURS["ink"],
}
_WIDTH, _LINE, _AROUND = 4.9, 0.215, 0.62  # inches: of a chart, of each of its lines, of title and axis
_TALL, _HEAD, _CELL = 3.2, 1.1, 0.165  # inches: of a cloud, of what stands around a grid, of its row
_ROW_LABEL, _COLUMN_LABEL = 28, 8  # characters of a grid's labels, at most
_STROKES = (("host", "-"), ("nvlink", "--"), ("pi5", ":"))  # of curves, told apart without their colours too
_LEAST = 1e-9  # drawn in place of zero on a logarithmic axis
_DECADES = 9  # of a logarithmic axis, at most


def svg(chart: Drawn) -> str:
    """Return a chart as an `<svg>` element."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: Any = {**_SETTINGS, "svg.hashsalt": chart.key}
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=(_WIDTH, _height(chart)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        match chart:
            case Chart():
                _draw(axes, chart)
            case Cloud():
                _scatter(axes, chart)
            case Grid():
                _shade(axes, chart)
            case Curves():
                _trace(axes, chart)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(out.getvalue(), chart)


def _height(chart: Drawn) -> float:
    match chart:
        case Chart():
            return _AROUND + _LINE * len(chart.lines)
        case Cloud() | Curves():
            return _TALL
        case Grid():
            return _HEAD + _CELL * len(chart.rows)


def _scatter(axes: Axes, chart: Cloud) -> None:
    from matplotlib.ticker import FuncFormatter

    for series in chart.series:
        colour = _COLOURS["ink" if series.cross else "host" if series.joined else "muted"]
        axes.plot(
            [x for x, _ in series.points],
            [max(y, _LEAST) for _, y in series.points],
            marker="x" if series.cross else "o",
            markersize=9 if series.cross else 4,
            linestyle="-" if series.joined else "",
            linewidth=1,
            color=colour,
            markerfacecolor=colour if series.joined else _COLOURS["paper"],
            zorder=5 if series.cross else 4,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text.number(value, 1)))
    axes.set_xlabel(chart.x_axis)
    axes.set_ylabel(chart.y_axis)
    axes.grid(color=_COLOURS["grid"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)


def _trace(axes: Axes, chart: Curves) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for curve, (name, style) in zip(chart.curves, _STROKES, strict=False):
        axes.plot(
            [x for x, _ in curve.points],
            [math.nan if y is None else max(y, _LEAST) if chart.log_y else y for _, y in curve.points],
            color=_COLOURS[name],
            linestyle=style,
            linewidth=1.4,
            drawstyle="steps-post" if chart.steps else "default",
            label=text.plain(curve.label),
        )
    for axis, scale, log in ((axes.xaxis, axes.set_xscale, chart.log_x), (axes.yaxis, axes.set_yscale, chart.log_y)):
        if log:
            scale("log")
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: text.number(value, 1) if value >= 10 else f"{value:g}"))
    if not chart.log_y:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(chart.x_axis)
    axes.set_ylabel(chart.y_axis)
    axes.grid(color=_COLOURS["grid"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(chart.curves) > 1:
        axes.legend(frameon=False, fontsize=8.5)


def _shade(axes: Axes, chart: Grid) -> None:
    from matplotlib.patches import Rectangle

    known = [math.log10(max(v, _LEAST)) for row in chart.values for v in row if v is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    for y, row in enumerate(chart.values):
        for x, value in enumerate(row):
            if value is None:
                continue
            shade = (math.log10(max(value, _LEAST)) - low) / ((high - low) or 1.0)
            framed = x in chart.chosen[y]
            axes.add_patch(
                Rectangle(
                    (x - 0.5, y - 0.5), 1, 1, facecolor=_COLOURS["host"], alpha=round(0.05 + 0.9 * shade, 3),
                    edgecolor="none",
                )
            )  # fmt: skip
            if framed:
                axes.add_patch(
                    Rectangle((x - 0.42, y - 0.42), 0.84, 0.84, fill=False, edgecolor=_COLOURS["ink"], linewidth=1.2)
                )
    axes.set_xlim(-0.5, len(chart.columns) - 0.5)
    axes.set_ylim(len(chart.rows) - 0.5, -0.5)
    axes.set_yticks(range(len(chart.rows)), [_short(row, _ROW_LABEL) for row in chart.rows], fontsize=7.5)
    axes.set_xticks(
        range(len(chart.columns)),
        [_short(column, _COLUMN_LABEL) for column in chart.columns],
        fontsize=7.5,
        rotation=60,
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _short(label: str, length: int) -> str:
    shown = text.plain(label)
    return shown if len(shown) <= length else shown[: length - 1] + "\u2026"


def _draw(axes: Axes, chart: Chart) -> None:
    if chart.log:
        axes.set_xscale("log")
        low, high = _decades(chart.lines)
        axes.set_xlim(low, high)
    else:
        low = 0.0
        axes.set_xlim(0, 1.06 * max(_values(chart.lines), default=0.0) or 1.0)
    for place, line in enumerate(chart.lines):
        for mark in line.marks:
            _mark(axes, mark, place, _COLOURS[line.runner or "plain"], low)
    _frame(axes, chart)


def _frame(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_ylim(len(chart.lines) - 0.4, -0.6)
    axes.set_yticks(range(len(chart.lines)), [_label(line) for line in chart.lines])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(chart.axis)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: text.number(value, 1) if chart.log else f"{value:,g}")
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color=_COLOURS["grid"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _label(line: Line) -> str:
    return f"{line.label} · {line.runner}" if line.runner else line.label


def _mark(axes: Axes, mark: Mark, y: int, colour: str, low: float) -> None:
    def at(value: float) -> float:
        return max(value, low)

    match mark:
        case Bar(value, bound):
            face = "none" if bound else colour
            style = "--" if bound else "-"
            axes.barh(y, value, height=0.62, facecolor=face, edgecolor=colour, linewidth=1, linestyle=style)
        case Dot(value, hollow):
            face = _COLOURS["paper"] if hollow else colour
            axes.plot(at(value), y, "o", markersize=5, markerfacecolor=face, markeredgecolor=colour, zorder=4)
        case Tick(value):
            axes.plot(at(value), y, "|", markersize=11, markeredgewidth=2, color=_COLOURS["ink"], zorder=5)
        case Span(start, end):
            axes.plot([at(start), at(end)], [y, y], color=colour, linewidth=1.5, zorder=3)
        case Box(p5, p25, p50, p75, p95):
            axes.plot([at(p5), at(p95)], [y, y], color=colour, linewidth=1, zorder=3)
            axes.plot([at(p5), at(p95)], [y, y], "|", color=colour, markersize=6, zorder=3)
            axes.barh(y, at(p75) - at(p25), left=at(p25), height=0.62, facecolor=colour, edgecolor=colour, zorder=3)
            axes.plot([at(p50)] * 2, [y - 0.31, y + 0.31], color=_COLOURS["paper"], linewidth=1.6, zorder=4)


def _values(lines: Sequence[Line]) -> list[float]:
    found = (value for line in lines for mark in line.marks for value in vars(mark).values())
    return [value for value in found if not isinstance(value, bool)]


def _decades(lines: Sequence[Line]) -> tuple[float, float]:
    """Return whole decades around all values; zero, and what lies far below the greatest, is drawn at the lower end."""
    values = [value for value in _values(lines) if value > 0] or [1.0]
    high = math.ceil(math.log10(max(values)) + 0.02)
    low = math.floor(math.log10(min(values)) - 0.02)
    return 10.0 ** max(low, high - _DECADES), 10.0**high


def _inline(document: str, chart: Drawn) -> str:
    body = document[document.index("<svg") :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    referred = set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', body))
    body = re.sub(r' id="([\w.-]+)"', lambda m: f' id="{chart.key}-{m[1]}"' if m[1] in referred else "", body)
    body = re.sub(r'(url\(#|href="#)([\w.-]+)', rf"\g<1>{chart.key}-\g<2>", body)
    for name, colour in _COLOURS.items():
        body = body.replace(colour, f"var(--{name})")
    body = re.sub(r"font-family: [^;\"]*;? ?|(?<=font: )([\d.]+px) '[^;\"]*", r"\1", body)
    head = re.search(r'viewBox="([^"]+)"', body)
    assert head is not None
    width = head[1].split()[2]
    opened = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{head[1]}" '
        f'width="{width}" role="img" aria-label={quoteattr(chart.summary)}>'
    )
    inside = re.sub(r"\n\s*", "\n", body[body.index(">") + 1 :])
    return opened + inside.strip()
