"""A cluster brought to what is rendered, on its own side, as a field manager of our own.

Rules: a field that somebody else manages is told of, with who and which, and nothing is applied then; objects are
applied in their order; kinds that an older server does not have in a current version are given to it in the one it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.deploy.changes import Change, Key, Seen, plan
from pipeline.deploy.render import key
from pipeline.errors import ConflictError, ToolError
from pipeline.ports.kube import Cluster, FieldConflict, ForbiddenError, Kind, Object

MANAGER = "edge-release-deploy"
# The same fields under an older name, for servers that have no newer one.
_OLDER = {
    ("policy/v1", "PodDisruptionBudget"): "policy/v1beta1",
    ("autoscaling/v2", "HorizontalPodAutoscaler"): "autoscaling/v2beta2",
}


def served(cluster: Cluster, documents: Sequence[Object]) -> list[Object]:
    """Return objects in the versions that a cluster serves; raises ToolError where it lacks a kind."""
    return [_served(cluster, document) for document in documents]


def _served(cluster: Cluster, document: Object) -> Object:
    kind = Kind.of(document)
    older = _OLDER.get((kind.api_version, kind.name))
    if cluster.serves(kind):
        return document
    if older and cluster.serves(Kind(older, kind.name)):
        return {**document, "apiVersion": older}
    raise ToolError(
        f"the cluster does not serve {kind}",
        hint="install what brings it (cert-manager, KEDA), use a newer Kubernetes, or leave the component out",
    )


def look(
    cluster: Cluster, wanted: Sequence[Object], before: Sequence[Object], *, force: bool = False
) -> tuple[Change, ...]:
    """Return what applying would change, as the server says; nothing is changed."""
    kept, known = {key(d) for d in wanted}, {key(d): d for d in before}
    found: dict[Key, Seen] = {}
    for document in wanted:
        try:
            found[key(document)] = _seen(cluster, document, force)
        except ForbiddenError:  # roles, say, are an admin's; as they were last applied they need no look
            if known.get(key(document)) != document:
                raise
            found[key(document)] = Seen(document, document)
    for document in before:
        if key(document) not in kept:
            found[key(document)] = Seen(live(cluster, document), None)
    return plan(wanted, found, before)


def _seen(cluster: Cluster, document: Object, force: bool) -> Seen:
    found = live(cluster, document)
    if found is None:  # its namespace may not be there either, in which case the server refuses even a dry run
        return Seen(None, None)
    applied = cluster.apply(document, manager=MANAGER, force=force, dry_run=True)
    return Seen(found, applied.object, applied.conflicts)


def live(cluster: Cluster, document: Object) -> Object | None:
    """Return an object as the cluster has it."""
    return cluster.find(Kind.of(document), document["metadata"]["name"], document["metadata"].get("namespace"))


def check(changes: Sequence[Change]) -> None:
    """Raise ConflictError where somebody else manages a field."""
    found = [(change.key, conflict) for change in changes for conflict in change.conflicts]
    if found:
        told = "; ".join(_told(k, c) for k, c in found)
        raise ConflictError(
            f"others manage {len(found)} fields, and nothing was applied: {told}",
            hint="let them go there, or leave the fields out of the base; --force takes them over",
        )


def apply(
    cluster: Cluster, changes: Sequence[Change], *, force: bool = False, done: Callable[[Change], None] = lambda _: None
) -> None:
    """Make the changes; raises ConflictError where a field was taken meanwhile, and ToolError as the port does."""
    for change in changes:
        if change.wanted is None:
            kind, namespace, name = change.key
            assert change.before is not None, "what goes was there"
            cluster.delete(Kind(change.before["apiVersion"], kind), name, namespace or None)
        else:
            applied = cluster.apply(change.wanted, manager=MANAGER, force=force)
            if applied.conflicts:
                check([Change(change.key, None, None, change.wanted, applied.conflicts)])
        done(change)


def _told(named: Key, conflict: FieldConflict) -> str:
    return f"{conflict.manager} has {conflict.field} of {named[0]} {named[2]}"
