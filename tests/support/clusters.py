"""A cluster that is held in memory: objects by kind and name, and pods that follow their StatefulSets at once."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from pipeline.deploy.render import EDGE, LARGE
from pipeline.deploy.rollout import MANAGER
from pipeline.ports.kube import EVENT, POD, STATEFUL_SET, Applied, Evicted, Kind, Object


@dataclass
class Held:
    """One namespace. Pods named in `stuck` stay as they are, and are not ready; `event` is raised instead of taking one.

    It has what the deploy job asks of a cluster.
    """

    stuck: set[str] = field(default_factory=set)
    event: BaseException | None = None
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    pods: dict[str, Object] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    partitions: list[int] = field(default_factory=list)

    def serves(self, kind: Kind) -> bool:
        return True

    def find(self, kind: Kind, name: str, namespace: str | None = None) -> Object | None:
        return copy.deepcopy(self.objects.get((kind.name, name)))

    def find_all(self, kind: Kind, namespace: str | None = None, *, labels: str = "", fields: str = "") -> list[Object]:
        assert kind == POD
        name = labels.partition("=")[2]
        self._follow(name)
        return [copy.deepcopy(p) for n, p in self.pods.items() if n.rpartition("-")[0] == name]

    def create(self, document: Object) -> Object | None:
        if document["kind"] == EVENT.name:
            if self.event:
                raise self.event
            self.events.append(document["message"])
            return document
        return self.replace(document)

    def replace(self, document: Object) -> Object | None:
        kept = copy.deepcopy(document)
        kept["metadata"] |= {"uid": f"{kept['kind']}-{kept['metadata']['name']}", "resourceVersion": "1"}
        self.objects[kept["kind"], kept["metadata"]["name"]] = kept
        return copy.deepcopy(kept)

    def apply(self, document: Object, *, manager: str, force: bool = False, dry_run: bool = False) -> Applied:
        before = self.objects.get((document["kind"], document["metadata"]["name"]), {})
        after = copy.deepcopy(before if manager == MANAGER else document)
        if document["kind"] == STATEFUL_SET.name:
            owner = document if manager == MANAGER else before
            after["spec"]["updateStrategy"] = owner.get("spec", {}).get("updateStrategy", {})
        if dry_run:
            return Applied(after)
        if manager == MANAGER:
            self.partitions.append(document["spec"]["updateStrategy"]["rollingUpdate"]["partition"])
        return Applied(self.replace(after))

    def delete(self, kind: Kind, name: str, namespace: str | None = None) -> bool:
        return self.objects.pop((kind.name, name), None) is not None

    def evict(self, namespace: str, pod: str, grace_s: int | None = None) -> Evicted:
        return Evicted.ACCEPTED if self.pods.pop(pod, None) else Evicted.ABSENT

    def _follow(self, name: str) -> None:
        document = self.objects.get((STATEFUL_SET.name, name))
        if name not in {EDGE, LARGE} or document is None:
            return
        spec: dict[str, Any] = document["spec"]
        partition = spec["updateStrategy"].get("rollingUpdate", {}).get("partition", 0)
        for i in range(spec.get("replicas", 1)):
            pod = f"{name}-{i}"
            if pod not in self.stuck and (i >= partition or pod not in self.pods):
                self.pods[pod] = copy.deepcopy(spec["template"])
            meta = {"name": pod, "ownerReferences": [{"uid": document["metadata"]["uid"]}]}
            self.pods[pod]["metadata"] = {**self.pods[pod]["metadata"], **meta}
            ready = "False" if pod in self.stuck else "True"
            self.pods[pod]["status"] = {"conditions": [{"type": "Ready", "status": ready}]}
