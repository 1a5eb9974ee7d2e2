"""Does what was decided: policies to gateways, scales and evictions to Kubernetes, with an event for each.

Rules: before each action it is asked again whether this one leads; whatever changed since it was looked at is left as
it is, to be looked at anew; one that fails keeps none of the others from being done; nothing is undone: a crash between
two leaves the fleet in a state that the next round goes on from.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from pipeline.control.actions import Action, Actions, Evict, PreWarm, Scale, SetPolicy
from pipeline.control.cluster import kind_of
from pipeline.control.fetch import Fetch
from pipeline.control.gateways import Gateways
from pipeline.control.settings import Settings
from pipeline.errors import ToolError
from pipeline.ports import kube
from pipeline.ports.kube import Cluster, Evicted

COMPONENT = "edge-release-controller"


class Outcome(StrEnum):
    """What became of an action."""

    DONE = "done"
    CHANGED = "changed"  # somebody else was first
    BLOCKED = "blocked"  # by a disruption budget
    FAILED = "failed"
    LEFT = "left"  # to the autoscaler
    NOT_LEADING = "not_leading"


@dataclass(frozen=True)
class Did:
    """An action and what became of it."""

    action: Action
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True)
class Actor:
    """Acts while `leads` says so; without a cluster on gateways alone."""

    fetch: Fetch
    settings: Settings
    gateways: Gateways
    leads: Callable[[], bool]
    cluster: Cluster | None = None

    async def do(self, actions: Actions) -> list[Did]:
        """Do actions in their order; raises nothing."""
        done = []
        for action in actions:
            if not self.leads():
                done.append(Did(action, Outcome.NOT_LEADING))
                continue
            try:
                done.append(await self._one(action))
            except ToolError as e:
                done.append(Did(action, Outcome.FAILED, e.message))
        return done

    async def _one(self, action: Action) -> Did:
        if isinstance(action, SetPolicy):
            return await self._policy(action)
        if self.cluster is None or (self.settings.acting.actor == "autoscaler" and not isinstance(action, Evict)):
            return Did(action, Outcome.LEFT)
        if isinstance(action, Evict):
            return await asyncio.to_thread(self._evict, self.cluster, action)
        return await asyncio.to_thread(self._scale, self.cluster, action)

    async def _policy(self, action: SetPolicy) -> Did:
        entry = self.gateways.named(action.gateway)
        if entry is None:
            return Did(action, Outcome.CHANGED, "the gateway is gone")
        body = action.policy.model_dump_json().encode()
        said = await self.fetch.put(f"{entry.url}/admin/policy", body, name=entry.tls_name)
        if said.status == 409:
            return Did(action, Outcome.CHANGED, "the gateway has a newer policy")
        if said.status != 200:
            why = said.problem or f"status {said.status}: {said.body[:200].decode(errors='replace')}"
            return Did(action, Outcome.FAILED, why)
        return Did(action, Outcome.DONE)

    def _scale(self, cluster: Cluster, action: Scale | PreWarm) -> Did:
        pool = next(p for p in self.settings.pools if p.name == action.pool)
        found = cluster.scale(kind_of(pool), pool.workload, pool.namespace)
        if found is None:
            return Did(action, Outcome.FAILED, f"{pool.namespace} has no {pool.kind} {pool.workload}")
        if found.wanted != action.was:
            return Did(action, Outcome.CHANGED, f"{found.wanted} replicas are asked for, no longer {action.was}")
        if not cluster.set_scale(kind_of(pool), pool.workload, pool.namespace, action.replicas, found.version):
            return Did(action, Outcome.CHANGED, "somebody else was first")
        said = f"{action.was} to {action.replicas} replicas ({action.reason}): {action.detail}"
        self._event(cluster, cluster.find(kind_of(pool), pool.workload, pool.namespace), "Rescaled", said)
        return Did(action, Outcome.DONE)

    def _evict(self, cluster: Cluster, action: Evict) -> Did:
        found = cluster.find(kube.POD, action.pod, action.namespace)
        if found is None or found["metadata"]["uid"] != action.uid:
            return Did(action, Outcome.CHANGED, "the pod is gone")
        match cluster.evict(action.namespace, action.pod):
            case Evicted.BLOCKED:
                return Did(action, Outcome.BLOCKED, "a disruption budget keeps it")
            case Evicted.ABSENT:
                return Did(action, Outcome.CHANGED, "the pod is gone")
        self._event(cluster, found, "YieldsToBurst", f"evicted for pool {action.pool}: {action.detail}")
        return Did(action, Outcome.DONE)

    def _event(self, cluster: Cluster, about: kube.Object | None, reason: str, message: str) -> None:
        """Tell the cluster; that it did not take an event undoes nothing."""
        if about is None:
            return
        now = datetime.now(UTC)
        with contextlib.suppress(ToolError):
            cluster.create(kube.event(about, component=COMPONENT, reason=reason, message=message, now=now))
