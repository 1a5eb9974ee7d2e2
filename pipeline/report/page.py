"""The report as one self-contained HTML page.

Rules: every value is made plain and escaped by the template engine, none by hand; the page runs no script and asks for
nothing beyond itself, which its own policy enforces; nothing in it tells when or where it was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.report import drawing, text
from pipeline.report.layout import Section
from pipeline.report.model import Report
from pipeline.report.shown import heading, sections
from pipeline.report.shown.heading import Fact

_HERE = Path(__file__).parent
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def require_libraries() -> None:
    """Raise ToolError where what a page is drawn and written with is not installed."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise ToolError(f"a report needs {e.name}", hint="pip install 'edge-release[build]'") from e


@dataclass(frozen=True)
class Sheet:
    """A page: `kind` says what of, `outcome` whether all is well, `command` what wrote it."""

    kind: str
    title: str
    outcome: str
    passed: bool
    facts: Sequence[Fact]
    notes: Sequence[str]
    sections: Sequence[Section]
    command: str


def html(report: Report) -> str:
    """Return the page of a release."""
    return render(
        Sheet(
            kind="Release report",
            title=heading.title(report),
            outcome=heading.outcome(report),
            passed=report.subject.verdict.passed,
            facts=heading.facts(report),
            notes=report.notes,
            sections=sections(report),
            command="edge-release report",
        )
    )


def render(sheet: Sheet) -> str:
    """Return a page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: object) -> object:
        return value if isinstance(value, Markup) else text.plain(value)

    engine = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, finalize=finalize, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return engine.get_template("page.html").render(
        **vars(sheet),
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        policy=POLICY,
        draw=lambda chart: Markup(drawing.svg(chart)),  # noqa: S704 - escaped by matplotlib and quoteattr
    )
