"""What a cluster says of the servers: StatefulSets and their pods as the rollout sees them.

Rules: a pod is of the new template by what is written on it, not by a revision's hash; a status counts once it is of
what was asked for last; a pod that is going is not ready.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.deploy.canary import CLOSED, Pool, Server
from pipeline.deploy.render import EDGE, LARGE, TEMPLATE
from pipeline.ports.kube import POD, STATEFUL_SET, Cluster, Object

# Why a container waits when waiting will not help.
_HOPELESS = {
    "CrashLoopBackOff", "CreateContainerConfigError", "CreateContainerError", "ErrImageNeverPull", "ErrImagePull",
    "ImagePullBackOff", "InvalidImageName", "RunContainerError",
}  # fmt: skip


def pools(
    cluster: Cluster, namespace: str, templates: Mapping[str, str], said: Mapping[str, str] = {}
) -> dict[str, Pool]:
    """Return the StatefulSets of servers.

    Args:
        templates: the new templates by StatefulSet.
        said: what servers say is wrong with them, by name.
    """
    found = {}
    for name in (EDGE, LARGE):
        document = cluster.find(STATEFUL_SET, name, namespace)
        if document is not None and name in templates:
            pods = cluster.find_all(POD, namespace, labels=f"app.kubernetes.io/name={name}")
            found[name] = pool(document, pods, templates[name], said)
    return found


def pool(document: Object, pods: list[Object], template: str, said: Mapping[str, str]) -> Pool:
    """Return a StatefulSet with its pods, by their ordinals."""
    spec, status = document["spec"], document.get("status") or {}
    rolling = (spec.get("updateStrategy") or {}).get("rollingUpdate") or {}
    current = status.get("observedGeneration", 0) >= document["metadata"].get("generation", 0)
    servers = sorted((_server(p, template, said) for p in pods if _owned(p, document)), key=lambda s: _ordinal(s.name))
    return Pool(
        name=document["metadata"]["name"],
        new=_template(spec["template"]) == template,
        partition=rolling.get("partition", 0),
        replicas=spec.get("replicas", 1),
        split=current and status.get("currentRevision") != status.get("updateRevision"),
        servers=tuple(servers),
    )


def shut(document: Object) -> bool:
    """Return whether a StatefulSet lets no pod take a new template."""
    rolling = (document["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}
    return bool(rolling.get("partition") == CLOSED)


def _owned(pod: Object, document: Object) -> bool:
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(owner.get("uid") == document["metadata"].get("uid") for owner in owners)


def is_ready(pod: Object) -> bool:
    """Return whether a pod is ready."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _server(pod: Object, template: str, said: Mapping[str, str]) -> Server:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    going = "deletionTimestamp" in pod["metadata"]
    new = _template(pod) == template
    ready = is_ready(pod)
    trouble = None if going else _trouble(status) or (said.get(name) if new else None)
    return Server(name, new, ready and not going, trouble)


def _trouble(status: Object) -> str | None:
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _HOPELESS:
            told = waiting.get("message")
            return f"is in {waiting['reason']}" + (f" ({told})" if told else "")
    return None


def _template(holder: Object) -> str | None:
    found = (holder["metadata"].get("annotations") or {}).get(TEMPLATE)
    return None if found is None else str(found)


def _ordinal(name: str) -> int:
    last = name.rpartition("-")[2]
    return int(last) if last.isdigit() else -1
