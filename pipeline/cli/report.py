"""Write the report of a release: a page, and Markdown for a pull request."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cli import output
from pipeline.cli.access import Access, add_consumer_options
from pipeline.cli.command import Commands, add
from pipeline.ports import files

FOLDER = Path("build/report")
_ABOUT = """\
Without --channel, --release or --registry the report is of the release that was built in this project or, where the
gate refused it, of the evidence and the reasons. A published release is verified first.
"""


def add_commands(commands: Commands) -> None:
    """Add the command."""
    report = add(
        commands,
        "report",
        _report,
        "write what a release is, how good, how fast and what changed: one HTML page, and Markdown",
        "report",
        "report --channel stable",
        "report --release 7 --previous 5 --html release-7.html",
        "report --registry s3://models/releases --line edge-demo --json",
    )
    report.epilog = f"{_ABOUT}\n{report.epilog}"
    report.add_argument(
        "--previous",
        type=int,
        metavar="VERSION",
        help="release to compare with (default: the one that the gate compared with)",
    )
    for name, what in (("html", "the page"), ("markdown", "the Markdown")):
        suffix = "html" if name == "html" else "md"
        report.add_argument(
            f"--{name}",
            type=Path,
            default=FOLDER / f"report.{suffix}",
            metavar="FILE",
            help=f"where {what} is written (default: {FOLDER / f'report.{suffix}'})",
        )
    add_consumer_options(report)


def _report(args: argparse.Namespace) -> None:
    from pipeline.cli import material
    from pipeline.report import markdown, model, page
    from pipeline.report.shown import heading

    page.require_libraries()
    made = model.make(material.collect(Access(args)))
    files.write(args.html, page.html(made).encode())
    files.write(args.markdown, markdown.markdown(made).encode())
    subject = made.subject
    if args.json:
        output.emit(
            {
                "html": str(args.html),
                "markdown": str(args.markdown),
                "state": subject.state,
                "line": subject.line,
                "version": subject.version,
                "passed": subject.verdict.passed,
                "reasons": subject.verdict.reasons,
                "channels": subject.verdict.channels,
                "compared_with": made.changes.version if made.changes else None,
                "notes": list(made.notes),
            }
        )
        return
    for note in made.notes:
        output.note(f"note: {note}")
    output.say(f"{heading.title(made)}: {heading.outcome(made)}")
    output.say(f"report: {args.html}, {args.markdown}")
