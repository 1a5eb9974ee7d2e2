"""A rollout driven to its end: look, decide, store what was decided, do it.

Rules: it decides nothing itself; killed at any point, another run goes on from what the cluster holds; a pod that is
ready goes by the Eviction API, so that budgets are kept; every turn is an event of its StatefulSet, where that can be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pipeline.deploy.canary import (
    CLOSED,
    Judge,
    Judged,
    Open,
    Phase,
    Pool,
    Progress,
    Recall,
    Restore,
    Turn,
    View,
    Wait,
    decide,
    stages,
)
from pipeline.deploy.observe import is_ready, pools
from pipeline.deploy.progress import Lock, Store
from pipeline.deploy.render import EDGE, LARGE
from pipeline.deploy.settings import Canary
from pipeline.errors import ConflictError, ToolError
from pipeline.ports.kube import POD, STATEFUL_SET, Cluster, Evicted, Object, event

MANAGER = "edge-release-rollout"


@dataclass
class Rollout:
    """One rollout of a namespace.

    `judge` says how servers of the new release do, `said` what servers say is wrong with them, `restore` brings back
    what was there before; `clock` gives seconds since 1970.
    """

    cluster: Cluster
    store: Store
    lock: Lock
    canary: Canary
    judge: Callable[[Mapping[str, Pool]], Judged]
    said: Callable[[], Mapping[str, str]]
    restore: Callable[[], None]
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    say: Callable[[str], None]

    def run(self, progress: Progress) -> Progress:
        """Return how it ended."""
        judged: Judged | None = None
        restored, told = False, ""
        while not progress.phase.ended:
            self.lock.renew()
            seen = pools(self.cluster, self.store.namespace, progress.templates, self.said())
            match decide(progress, View(seen, self.clock(), judged, restored), self.canary):
                case Turn(turned):
                    judged = judged if turned.stage == progress.stage else None
                    self._turn(progress, turned, seen)
                    progress = turned
                case Open(name, partition):
                    let_through(self.cluster, self.store.namespace, name, partition)
                    self.sleep(self.canary.look_s)
                case Recall(pod):
                    self._recall(pod)
                    self.sleep(self.canary.look_s)
                case Restore():
                    self.restore()
                    restored = True
                case Judge():
                    judged = replace(self.judge(seen), at=self.clock())  # asking may take longer than it holds
                case Wait(why):
                    if (bare := re.sub(r"\d+", "", why)) != told:  # what only counts on is said once
                        self.say(why)
                    told = bare
                    self.sleep(self.canary.look_s)
        return progress

    def _turn(self, before: Progress, after: Progress, seen: Mapping[str, Pool]) -> None:
        self.store.turn(after)
        edge, large = (seen[name].replicas if name in seen else 0 for name in (EDGE, LARGE))
        steps = stages(edge, large, self.canary.share)
        line, warning = _line(before, after, [s.label for s in steps])
        if line:
            self.say(line)
            try:
                self._tell(EDGE if EDGE in seen else LARGE, line, warning=warning)
            except ToolError as e:  # the rollout does not depend on who reads of it
                self.say(f"there is no event of it: {e}")

    def _tell(self, name: str, line: str, *, warning: bool) -> None:
        about = self.cluster.find(STATEFUL_SET, name, self.store.namespace)
        if about is not None:
            reason, now = "ReleaseRolledBack" if warning else "ReleaseStep", datetime.fromtimestamp(self.clock(), UTC)
            self.cluster.create(event(about, component=MANAGER, reason=reason, message=line, now=now, warning=warning))

    def _recall(self, name: str) -> None:
        space = self.store.namespace
        if self.cluster.evict(space, name) is not Evicted.BLOCKED:
            return
        pod = self.cluster.find(POD, name, space)
        if pod is not None and not is_ready(pod):  # a budget counts it as missing already
            self.cluster.delete(POD, name, space)


def let_through(cluster: Cluster, namespace: str, name: str, partition: int) -> None:
    """Let pods of a StatefulSet from an ordinal on take the newest template; to let none, fields are taken by force."""
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}}
    document: Object = {
        "apiVersion": STATEFUL_SET.api_version, "kind": STATEFUL_SET.name,
        "metadata": {"name": name, "namespace": namespace}, "spec": {"updateStrategy": strategy},
    }  # fmt: skip
    done = cluster.apply(document, manager=MANAGER, force=partition == CLOSED)
    if done.conflicts:
        told = ", ".join(f"{c.manager} has {c.field}" for c in done.conflicts)
        raise ConflictError(f"the partition of {name} is somebody else's: {told}", hint="let it go there, then go on")


def _line(before: Progress, after: Progress, labels: list[str]) -> tuple[str, bool]:
    """Return what a turn is told as, and whether it is a warning."""
    step = labels[after.stage] if after.stage < len(labels) else "all"
    if after.phase is Phase.BACK and before.phase is not Phase.BACK:
        return f"release {after.release} is rolled back: {after.reason}", True
    if after.phase is Phase.FAILED:
        back = f"release {after.before} serves again" if after.before else "nothing was there before"
        return f"release {after.release} was rolled back, {back}: {after.reason}", True
    if after.phase is Phase.DONE:
        return f"release {after.release} serves everywhere", False
    if after.stage != before.stage and after.stage < len(labels):
        return f"release {after.release}: {step}", False
    return "", False
