"""Stage `previous`: what the registry's last release was judged by, for the gate to compare with.

Rules: only a release that verifies counts; an expired one still tells what was; a registry that cannot be read is an
error, never "no previous release". Of releases with this version or a later one nothing is looked at, so that making
the same release again gives the same verdict.
"""

from __future__ import annotations

from datetime import UTC, datetime

from pipeline.manifest.dsse import Opener
from pipeline.manifest.encoding import Record
from pipeline.manifest.rules import Seen
from pipeline.manifest.statement import Manifest, Verdict
from pipeline.ports import files
from pipeline.registry import consume
from pipeline.registry.store import Store
from pipeline.stages.project import Project

_NO_EXPIRY = datetime(1970, 1, 1, tzinfo=UTC)


class Previous(Record):
    """The last release before this one; both None where there is none."""

    version: int | None = None
    verdict: Verdict | None = None


def look(store: Store, opener: Opener, line: str, version: int) -> Previous:
    """Return the newest verified release of `line` before `version`; raises RegistryError and TrustError."""
    earlier = [v for v in consume.releases(store, line) if v < version]
    if not earlier:
        return Previous()
    found = fetch(store, opener, line, max(earlier))
    return Previous(version=found.release.version, verdict=found.predicate.gate)


def fetch(store: Store, opener: Opener, line: str, version: int) -> Manifest:
    """Return the verified manifest of a release, expired or not; raises RegistryError and TrustError."""
    return consume.fetch(store, opener=opener, line=line, seen=Seen(), now=_NO_EXPIRY, version=version).manifest


def write(project: Project, previous: Previous) -> None:
    """Write `build/previous.json`."""
    files.write(project.previous, previous.encode() + b"\n")
