"""The report as Markdown, for a comment on a pull request.

Rules: every value is escaped: it can neither format, link, mention anybody nor refer to an issue, and it stays on its
line; the whole fits a comment, and what does not is named. No pictures: a comment cannot carry its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.report import text
from pipeline.report.layout import Cell, Section, Table, Tone
from pipeline.report.model import Report
from pipeline.report.shown import heading, sections

# By this line a job finds the comment it wrote before.
MARKER = "<!-- edge-release report -->"
LIMIT = 60_000  # characters; GitHub refuses comments beyond 65,536
ITEMS = 40  # reasons, or lines of changes; the rest is counted
ROWS = 10  # of a table that stands unfolded

_SPECIAL = re.compile(r"[\\`*_\[\]<>&|~$!{}]")
_MARK = re.compile(r"^(\d+)([.)])(?=\s|$)|^([-+=>:])")
_REFERENCE = re.compile(r"[@#]|\b(?:https?|ftp)(?=://)|\bwww(?=\.)", re.IGNORECASE)
_BREAK = "\u200b"  # of no width: breaks what GitHub would make a mention, a reference or a link
_HEX = re.compile(r"[0-9a-f]+")
_OPEN = {"gate", "changes"}  # sections whose tables are not folded
_TONES = {Tone.BAD: "**{}**", Tone.GOOD: "{}", Tone.WEAK: "_{}_", Tone.PLAIN: "{}"}


def markdown(report: Report) -> str:
    """Return the comment, at most `LIMIT` characters."""
    parts = [MARKER, f"## {escape(heading.title(report))}: {escape(heading.outcome(report))}", _facts(report)]
    parts += [f"> {escape(note)}" for note in report.notes]
    left_out = []
    for section in sections(report):
        if not section.brief:
            continue
        written = "\n\n".join(_section(section))
        if sum(map(len, parts)) + len(written) > LIMIT - 2_000:
            left_out.append(section.title)
        else:
            parts.append(written)
    if left_out:
        parts.append(f"Too long for a comment, and left out: {', '.join(map(escape, left_out))}.")
    parts.append("Charts, latency, cost and every file's digest are on the page that `edge-release report` writes.")
    return "\n\n".join(parts) + "\n"


def escape(value: str) -> str:
    """Return text that Markdown shows as it is, and that GitHub makes no link of."""
    shown = _SPECIAL.sub(r"\\\g<0>", text.plain(value))
    shown = _MARK.sub(lambda m: f"{m[1]}\\{m[2]}" if m[1] else f"\\{m[3]}", shown)
    return _REFERENCE.sub(rf"\g<0>{_BREAK}", shown)


def _facts(report: Report) -> str:
    return "\n".join(
        f"- {escape(f.name)}: {_code(f.value) if f.code else escape(f.value)}" for f in heading.facts(report)
    )


def _code(value: str) -> str:
    return f"`{value}`" if _HEX.fullmatch(value) else escape(value)


def _section(section: Section) -> Iterator[str]:
    yield f"### {escape(section.title)}"
    yield from map(escape, section.says)
    if section.items:
        yield "\n".join(f"- {escape(item)}" for item in section.items[:ITEMS])
    if len(section.items) > ITEMS:
        yield f"And {len(section.items) - ITEMS} more."
    for table in section.tables:
        caption = escape(table.caption)
        if section.key in _OPEN and len(table.rows) <= ROWS:
            yield f"**{caption}**\n\n{_table(table)}"
        else:
            yield f"<details><summary>{caption}</summary>\n\n{_table(table)}\n\n</details>"


def _table(table: Table) -> str:
    head = [escape(column.name) for column in table.columns]
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("|" + "|".join("--:" if column.numeric else "---" for column in table.columns) + "|")
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    shown = _code(cell.text) if cell.code else _TONES[cell.tone].format(escape(cell.text))
    return f"{shown} ({escape(cell.note)})" if cell.note else shown
