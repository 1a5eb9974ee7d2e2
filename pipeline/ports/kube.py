"""What this project asks of a Kubernetes cluster; `kube_api.connect` gives a real one.

Rules: objects are the API's own documents, with `apiVersion` and `kind`; that another was first is an answer (None,
False, `conflicts`), not an error; a field that another manager owns is never taken without `force`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from pipeline.errors import ToolError

Object = dict[str, Any]


class ForbiddenError(ToolError):
    """The cluster knows this identity, and does not let it do that."""


@dataclass(frozen=True)
class Kind:
    """A kind of objects, in one version of its API group: `apps/v1`, `Deployment`."""

    api_version: str
    name: str

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Kind:
        """Return the kind of an object."""
        return cls(document["apiVersion"], document["kind"])

    @property
    def path(self) -> str:
        """Where the API serves its group."""
        return f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"

    def __str__(self) -> str:
        return f"{self.api_version} {self.name}"


NODE, POD, NAMESPACE, EVENT, CONFIG_MAP = (Kind("v1", n) for n in ("Node", "Pod", "Namespace", "Event", "ConfigMap"))
DEPLOYMENT, DAEMON_SET, STATEFUL_SET = (Kind("apps/v1", n) for n in ("Deployment", "DaemonSet", "StatefulSet"))
LEASE = Kind("coordination.k8s.io/v1", "Lease")


@dataclass(frozen=True)
class FieldConflict:
    """A field that an applied object sets otherwise than `manager`, who owns it."""

    manager: str
    field: str


@dataclass(frozen=True)
class Applied:
    """The object as the cluster has it now; None where conflicts kept everything as it was."""

    object: Object | None
    conflicts: tuple[FieldConflict, ...] = ()


@dataclass(frozen=True)
class Scale:
    """How many replicas are wanted and there; `version` is what a change is based on."""

    wanted: int
    current: int
    version: str


@dataclass(frozen=True)
class Change:
    """An object as it is now, or as it was when it went."""

    object: Object
    gone: bool = False


class Evicted(StrEnum):
    """What became of an eviction."""

    ACCEPTED = "accepted"
    BLOCKED = "blocked"  # by a PodDisruptionBudget: ask again later
    ABSENT = "absent"


class Cluster(Protocol):
    """A cluster; every method raises ToolError where the API is unreachable, refuses, or does not serve the kind."""

    def serves(self, kind: Kind) -> bool:
        """Return whether the API has a kind."""
        ...

    def find(self, kind: Kind, name: str, namespace: str | None = None) -> Object | None:
        """Return an object, or None."""
        ...

    def find_all(self, kind: Kind, namespace: str | None = None, *, labels: str = "", fields: str = "") -> list[Object]:
        """Return objects by selectors, of every namespace where none is given."""
        ...

    def watch(self, kind: Kind, *, labels: str = "", seconds: int = 30) -> Iterator[list[Change]]:
        """Yield all objects of a kind at once, then what changes as it does, and nothing at least every `seconds`.

        It ends where changes were missed: then look anew.
        """
        ...

    def create(self, document: Object) -> Object | None:
        """Return the new object; None where one of that name exists."""
        ...

    def replace(self, document: Object) -> Object | None:
        """Return the object replaced; None where it changed since `metadata.resourceVersion`, or is gone."""
        ...

    def apply(self, document: Object, *, manager: str, force: bool = False, dry_run: bool = False) -> Applied:
        """Apply an object on the server's side as a field manager."""
        ...

    def patch(self, kind: Kind, name: str, namespace: str | None, changes: Object) -> Object | None:
        """Return the object after a merge patch, in which None takes a key away; None where it is gone."""
        ...

    def delete(self, kind: Kind, name: str, namespace: str | None = None) -> bool:
        """Delete an object, and in time what it owns; False where it is gone already."""
        ...

    def scale(self, kind: Kind, name: str, namespace: str) -> Scale | None:
        """Return an object's scale, or None."""
        ...

    def set_scale(self, kind: Kind, name: str, namespace: str, wanted: int, version: str | None = None) -> bool:
        """Change it; False where it changed since `version` (given, it must match), or is gone."""
        ...

    def evict(self, namespace: str, pod: str, grace_s: int | None = None) -> Evicted:
        """Ask a pod to go, as far as its PodDisruptionBudgets allow."""
        ...


def note(annotations: Mapping[str, str | None] = {}, labels: Mapping[str, str | None] = {}) -> Object:
    """Return the changes, for `patch`, that set annotations and labels; None takes one away."""
    return {"metadata": {"annotations": dict(annotations), "labels": dict(labels)}}


def event(about: Object, *, component: str, reason: str, message: str, now: datetime, warning: bool = False) -> Object:
    """Return an event about an object, to be created.

    Args:
        reason: one word in CamelCase, by which events are found.
    """
    meta, at = about["metadata"], now.strftime("%Y-%m-%dT%H:%M:%SZ")
    namespace = meta.get("namespace", "default")
    keys: Sequence[str] = ("name", "namespace", "uid", "resourceVersion")
    involved = {"apiVersion": about["apiVersion"], "kind": about["kind"], **{k: meta[k] for k in keys if k in meta}}
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.name,
        "metadata": {"generateName": f"{meta['name']}.", "namespace": namespace},
        "involvedObject": involved,
        "reason": reason,
        "message": message[:1024],  # the API takes no longer one
        "type": "Warning" if warning else "Normal",
        "source": {"component": component},
        "reportingComponent": component,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }
