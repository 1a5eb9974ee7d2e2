"""What a Kubernetes cluster says of pools, hosts with GPUs, the pods on them, and their disruption budgets.

Rules: reading it changes nothing; what a role does not allow to read is unknown, and so nobody is evicted for it. A GPU
is taken by whoever asked for it, whether the pod runs yet or not. A host takes a pool's pods as far as its labels and
taints say so; what is not understood of that says no.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from pipeline.control.scheduler.nodes import GPU, parse
from pipeline.control.settings import Eviction, PoolSettings, Settings
from pipeline.control.state import Host, Pod, Pool
from pipeline.errors import ToolError
from pipeline.ports.kube import NODE, POD, Cluster, Kind, Object

BUDGETS = (Kind("policy/v1", "PodDisruptionBudget"), Kind("policy/v1beta1", "PodDisruptionBudget"))
_ENDED = frozenset({"Succeeded", "Failed"})
_KEEPS_OUT = frozenset({"NoSchedule", "NoExecute"})
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"

T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """What the cluster says; `problems` is what it did not."""

    pools: tuple[Pool, ...] = ()
    hosts: tuple[Host, ...] = ()
    pods: tuple[Pod, ...] = ()
    budgets: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def kind_of(pool: PoolSettings) -> Kind:
    """Return the kind of a pool's workload."""
    return Kind("apps/v1", pool.kind)


def look(cluster: Cluster, settings: Settings) -> Found:
    """Return what the cluster says now; raises nothing."""
    asked = _Asked()
    workloads = {pool.name: asked.of(partial(_workload, cluster, pool)) for pool in settings.pools}
    pools = tuple(found.pool if found else Pool(name) for name, found in workloads.items())
    templates = {name: found.template for name, found in workloads.items() if found}
    rules = settings.eviction
    if not rules.enabled or not any(p.unschedulable for p in pools):
        return Found(pools, problems=tuple(asked.problems))  # who might yield is looked at where somebody is to
    nodes, everywhere = asked.of(partial(cluster.find_all, NODE)), asked.of(partial(cluster.find_all, POD))
    budgets = asked.of(partial(_budgets, cluster, rules.namespaces))
    pods = None if everywhere is None else [p for p in everywhere if _is_there(p)]
    if pods is None or budgets is None:
        return Found(pools, hosts(nodes or [], pods, templates), problems=tuple(asked.problems))
    return Found(
        pools=pools,
        hosts=hosts(nodes or [], pods, templates),
        pods=tuple(pod(p, budgets, rules) for p in pods if p["metadata"]["namespace"] in rules.namespaces),
        budgets={_key(b): b.get("status", {}).get("disruptionsAllowed", 0) for b in budgets},
        problems=tuple(asked.problems),
    )


@dataclass
class _Asked:
    """Asks, and remembers what it got no answer to."""

    problems: list[str] = field(default_factory=list)

    def of(self, ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except ToolError as e:
            self.problems.append(e.message)
            return None


def hosts(
    nodes: Iterable[Object], pods: Sequence[Object] | None, templates: Mapping[str, Object]
) -> tuple[Host, ...]:  # fmt: skip
    """Return the machines with GPUs, how many of those nobody asked for, and which pools' pods may be put there."""
    taken: dict[str, int] = {}
    for found in pods or []:
        on = found["spec"].get("nodeName", "")
        taken[on] = taken.get(on, 0) + gpus(found)
    told = []
    for found in nodes:
        node = parse(found)
        name, count, islands = node.name, node.machine.gpus, node.machine.islands
        if count and not found["spec"].get("unschedulable"):
            free = None if pods is None else count - taken.get(name, 0)
            able = tuple(pool for pool, spec in templates.items() if takes(found, spec))
            told.append(Host(name, count, free, islands[0] if islands else None, able))
    return tuple(told)


def takes(node: Object, spec: Object) -> bool:
    """Return whether a pod with this spec may be put on a node, by its state, labels and taints."""
    labels = node["metadata"].get("labels") or {}
    conditions = node.get("status", {}).get("conditions") or []
    if not any(c["type"] == "Ready" and c["status"] == "True" for c in conditions):
        return False
    if any(labels.get(k) != v for k, v in (spec.get("nodeSelector") or {}).items()):
        return False
    taints = [t for t in node["spec"].get("taints") or [] if t["effect"] in _KEEPS_OUT]
    if not all(any(_tolerates(x, taint) for x in spec.get("tolerations") or []) for taint in taints):
        return False
    wanted = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(_REQUIRED)
    return wanted is None or any(_is_meant(term, labels) for term in wanted["nodeSelectorTerms"])


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in {None, "", taint["effect"]}:
        return False
    key = toleration.get("key")
    if toleration.get("operator", "Equal") == "Exists":
        return key in {None, "", taint["key"]}
    return key == taint["key"] and (toleration.get("value") or "") == (taint.get("value") or "")


def _is_meant(term: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    told = term.get("matchExpressions") or []
    return bool(told) and not term.get("matchFields") and all(_matches(e, labels, unknown=False) for e in told)


def gpus(found: Object) -> int:
    """Return the GPUs that a pod asks for."""
    asked = [c.get("resources", {}) for c in found["spec"].get("containers", [])]
    return sum(int((r.get("limits") or r.get("requests") or {}).get(GPU, 0)) for r in asked)


def pod(found: Object, budgets: Iterable[Object], rules: Eviction) -> Pod:
    """Return a pod, with the budgets that cover it."""
    meta, spec = found["metadata"], found["spec"]
    key, _, value = rules.label.partition("=")
    return Pod(
        namespace=meta["namespace"], name=meta["name"], uid=meta["uid"], host=spec.get("nodeName", ""),
        priority=spec.get("priority", 0), gpus=gpus(found), batch=meta.get("labels", {}).get(key) == value,
        ending="deletionTimestamp" in meta, budgets=tuple(sorted(_key(b) for b in budgets if covers(b, found))),
    )  # fmt: skip


def covers(budget: Object, found: Object) -> bool:
    """Return whether a disruption budget covers a pod; what is not understood does, so that nobody goes by mistake."""
    if budget["metadata"]["namespace"] != found["metadata"]["namespace"]:
        return False
    labels = found["metadata"].get("labels", {})
    selector = budget["spec"].get("selector") or {}
    equal = all(labels.get(k) == v for k, v in (selector.get("matchLabels") or {}).items())
    return equal and all(_matches(e, labels, unknown=True) for e in selector.get("matchExpressions") or [])


def _matches(expression: Mapping[str, Any], labels: Mapping[str, str], *, unknown: bool) -> bool:
    found, values = labels.get(expression["key"]), expression.get("values") or []
    match expression["operator"]:
        case "In":
            return found in values
        case "NotIn":
            return found not in values
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None
    return unknown


@dataclass(frozen=True)
class _Workload:
    pool: Pool
    template: Object


def _workload(cluster: Cluster, pool: PoolSettings) -> _Workload:
    found = cluster.find(kind_of(pool), pool.workload, pool.namespace)
    if found is None:
        raise ToolError(f"{pool.namespace} has no {pool.kind} {pool.workload}", hint="mend pools in controller.yaml")
    wanted = ",".join(f"{k}={v}" for k, v in found["spec"]["selector"].get("matchLabels", {}).items())
    pods = cluster.find_all(POD, pool.namespace, labels=wanted) if wanted else []
    seen = Pool(
        pool.name,
        replicas=found["spec"].get("replicas", 1),
        ready=found.get("status", {}).get("readyReplicas", 0),
        unschedulable=sum(_is_unschedulable(p) for p in pods),
    )
    return _Workload(seen, found["spec"]["template"]["spec"])


def _is_unschedulable(found: Object) -> bool:
    conditions = found.get("status", {}).get("conditions", [])
    return any(c["type"] == "PodScheduled" and c.get("reason") == "Unschedulable" for c in conditions)


def _is_there(found: Object) -> bool:
    return found.get("status", {}).get("phase") not in _ENDED and bool(found["spec"].get("nodeName"))


def _budgets(cluster: Cluster, namespaces: Iterable[str]) -> list[Object]:
    kind = next((k for k in BUDGETS if cluster.serves(k)), BUDGETS[0])
    return [found for namespace in namespaces for found in cluster.find_all(kind, namespace)]


def _key(budget: Object) -> str:
    return f"{budget['metadata']['namespace']}/{budget['metadata']['name']}"


def with_problem(found: Found, problem: str) -> Found:
    """Return the same with one problem more."""
    return replace(found, problems=(*found.problems, problem))
