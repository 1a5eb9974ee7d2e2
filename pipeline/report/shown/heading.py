"""The top of the page: what this is, how it ended, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC

from pipeline.report import text
from pipeline.report.model import Report
from pipeline.report.subject import State, Subject

MODIFIED = 12  # files that are named; the rest is counted
_STATES = {
    State.PUBLISHED: "published; its signature and rules were verified",
    State.BUILT: "built here, not signed yet",
    State.EVIDENCE: "evidence only; there is no release",
}


@dataclass(frozen=True)
class Fact:
    """A line under the title; `code` for digests."""

    name: str
    value: str
    code: bool = False


def title(report: Report) -> str:
    """Return the release's name in a line."""
    subject = report.subject
    return f"{subject.line} {subject.version} ({subject.tag})"


def outcome(report: Report) -> str:
    """Return the verdict in a line."""
    verdict = report.subject.verdict
    if not verdict.passed:
        return f"Refused: {text.counted(len(verdict.reasons), 'reason')}"
    return f"Passed: open to {', '.join(verdict.channels)}" if verdict.channels else "Passed: open to no channel"


def facts(report: Report) -> tuple[Fact, ...]:
    """Return where the release comes from and until when it may be used."""
    return tuple(_facts(report.subject))


def _facts(subject: Subject) -> Iterator[Fact]:
    origin = subject.origin
    yield Fact("state", _STATES[subject.state])
    if subject.digest:
        unsigned = "" if subject.state is State.PUBLISHED else " (unsigned: signing adds to it)"
        yield Fact(f"manifest sha256{unsigned}", subject.digest, code=True)
    if origin.commit:
        yield Fact("commit", origin.commit, code=True)
    if origin.modified:
        more = len(origin.modified) - MODIFIED
        yield Fact(
            "modified since", ", ".join(origin.modified[:MODIFIED]) + (f", and {more:,} more" if more > 0 else "")
        )
    if origin.teacher:
        yield Fact("teacher", origin.teacher)
    if origin.teacher_sha256:
        yield Fact("teacher sha256", origin.teacher_sha256, code=True)
    if subject.expires:
        yield Fact("valid until", f"{subject.expires.astimezone(UTC):%Y-%m-%d %H:%M} UTC")
    before = subject.verdict.previous_version
    yield Fact("gate compared with", f"release {before}" if before else "no earlier release")
