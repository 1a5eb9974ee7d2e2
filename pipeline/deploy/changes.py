"""What a deploy would change: a pure function of what is rendered and what a cluster, or a repository, has.

Rules: what the server adds (defaults, status, versions) is no change; an object is compared with what the server says
it would become; a Secret's values are not shown; what nothing renders any more is taken away, unless it holds what
cannot be had again.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.deploy.render import document_bytes, key
from pipeline.ports.kube import FieldConflict

Object = dict[str, Any]
Key = tuple[str, str, str]
_SERVERS_OWN = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink")
_KEPT = {"Namespace", "PersistentVolumeClaim"}


@dataclass(frozen=True)
class Seen:
    """An object as a cluster has it, and as it would be after a deploy; None where it is not there."""

    live: Object | None
    proposed: Object | None
    conflicts: tuple[FieldConflict, ...] = ()


@dataclass(frozen=True)
class Change:
    """One object that changes; `wanted` is None where it goes."""

    key: Key
    before: Object | None
    after: Object | None
    wanted: Object | None
    conflicts: tuple[FieldConflict, ...] = ()

    @property
    def verb(self) -> str:
        """What is done to it."""
        return "delete" if self.wanted is None else "create" if self.before is None else "change"

    @property
    def diff(self) -> str:
        """What is different, as a unified diff."""
        before, after = (
            [] if d is None else document_bytes(d).decode().splitlines() for d in (self.before, self.after)
        )
        name = "/".join(part for part in self.key if part)
        return "\n".join(difflib.unified_diff(before, after, f"a/{name}", f"b/{name}", lineterm=""))


def plan(wanted: Sequence[Object], cluster: Mapping[Key, Seen], before: Sequence[Object] = ()) -> tuple[Change, ...]:
    """Return what changes: what is wanted, in its order, then what was rendered before and is not any more."""
    return (*_wanted(wanted, cluster), *_gone(wanted, cluster, before))


def _wanted(wanted: Sequence[Object], cluster: Mapping[Key, Seen]) -> Iterator[Change]:
    for document in wanted:
        seen = cluster.get(key(document), Seen(None, None))
        live, after = _bare(seen.live), _bare(seen.proposed) or _bare(document)
        if seen.conflicts or live != after:
            yield Change(key(document), live, after, document, seen.conflicts)


def _gone(wanted: Sequence[Object], cluster: Mapping[Key, Seen], before: Sequence[Object]) -> Iterator[Change]:
    kept = {key(document) for document in wanted}
    for document in before:
        seen = cluster.get(key(document), Seen(None, None))
        if key(document) not in kept and document["kind"] not in _KEPT and seen.live is not None:
            yield Change(key(document), _bare(seen.live), None, None)


def _bare(document: Object | None) -> Object | None:
    """Return an object without what the server keeps of it."""
    if document is None:
        return None
    meta = {k: v for k, v in document["metadata"].items() if k not in _SERVERS_OWN}
    found = {k: v for k, v in document.items() if k != "status"} | {"metadata": meta}
    if document["kind"] == "Secret":
        found = {k: v for k, v in found.items() if k not in {"data", "stringData"}}
    return found
