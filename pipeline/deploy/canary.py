"""How a release takes over, step by step: a pure function of what is seen and the time.

Rules, each of which a test states:
- one Pi first, then a share, then all, then the NVLink pool; a step begins when the one before kept its promises;
- a server that cannot run, an answer that is not the evidence's, a figure over its bound, or too long a wait for
  another server ends it;
- what ended it is undone: first nothing spreads further, then what was there before comes back;
- everything that is decided is decided from what the cluster holds, so that anyone may go on at any point.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import Field

from pipeline.deploy.render import EDGE, LARGE
from pipeline.deploy.settings import Canary
from pipeline.manifest.encoding import Record, Sha256

CLOSED = 2**31 - 1  # a partition that lets nothing through


class Phase(StrEnum):
    """How far a rollout is."""

    RUNNING = "running"
    BACK = "rolling back"
    DONE = "done"
    FAILED = "rolled back"

    @property
    def ended(self) -> bool:
        return self in {Phase.DONE, Phase.FAILED}


class Progress(Record):
    """A rollout, as the cluster keeps it.

    `before` is the release that was served, `templates` the new pods' by their StatefulSet; `reached` is how many
    servers of the step, or of those back, were ready at most; `since` is when the last of them was, or the step began,
    `settled` since when it keeps its promises without a break, in seconds since 1970.
    """

    schema_version: Literal[1] = 1
    release: int
    manifest_sha256: Sha256
    before: int | None = None
    templates: dict[str, str] = Field(default_factory=dict)
    stage: int = 0
    reached: int = 0
    since: float
    settled: float | None = None
    phase: Phase = Phase.RUNNING
    reason: str | None = None


@dataclass(frozen=True)
class Stage:
    """A step: so many servers of a StatefulSet on the new release."""

    label: str
    pool: str
    count: int


@dataclass(frozen=True)
class Server:
    """A pod; `new` says that it is of the new template, `trouble` why it will not become ready by itself."""

    name: str
    new: bool
    ready: bool
    trouble: str | None = None


@dataclass(frozen=True)
class Pool:
    """A StatefulSet: the new template or another one, what may be of it, and its pods.

    `split` says that the server still holds an old revision beside the newest, to which pods come back.
    """

    name: str
    new: bool
    partition: int
    replicas: int
    split: bool
    servers: tuple[Server, ...] = ()


@dataclass(frozen=True)
class Judged:
    """What a round of golden prompts and figures said: `bad` ends the rollout, `pending` is not known yet."""

    at: float
    bad: str | None = None
    pending: str | None = None


@dataclass(frozen=True)
class View:
    """What is seen: the StatefulSets by name, what was judged last, the time in seconds since 1970.

    `restored` says that what was there before was brought back, as far as that is done from here.
    """

    pools: Mapping[str, Pool]
    now: float
    judged: Judged | None = None
    restored: bool = False


@dataclass(frozen=True)
class Open:
    """Let pods from an ordinal on take the newest template; CLOSED lets none."""

    pool: str
    partition: int


@dataclass(frozen=True)
class Recall:
    """Take a pod away, so that another one comes in its place."""

    pod: str


@dataclass(frozen=True)
class Restore:
    """Bring back what was there before."""


@dataclass(frozen=True)
class Judge:
    """Ask golden prompts and look at figures."""


@dataclass(frozen=True)
class Wait:
    """Nothing to do but to wait."""

    why: str


@dataclass(frozen=True)
class Turn:
    """The rollout is another one now."""

    progress: Progress


Action = Open | Recall | Restore | Judge | Wait | Turn


def stages(edge: int, large: int, share: float) -> tuple[Stage, ...]:
    """Return the steps for so many Pis and large servers; a step that adds none is left out."""
    counts = {"one Pi": min(1, edge), "a share of the Pis": math.ceil(share * edge), "all Pis": edge}
    found, reached = list[Stage](), 0
    for label, count in counts.items():
        if count > reached:
            found.append(Stage(label, EDGE, count))
            reached = count
    return (*found, Stage("the NVLink pool", LARGE, large)) if large else tuple(found)


def back(progress: Progress, reason: str, now: float) -> Progress:
    """Return a rollout that goes back."""
    changes = {"phase": Phase.BACK, "reason": reason, "reached": 0, "since": now, "settled": None}
    return progress.model_copy(update=changes)


def decide(progress: Progress, view: View, canary: Canary) -> Action:
    """Return what to do next."""
    if progress.phase is Phase.BACK:
        return _back(progress, view, canary)
    pools = view.pools
    edge, large = (pools[name].replicas if name in pools else 0 for name in (EDGE, LARGE))
    steps = stages(edge, large, canary.share)
    if progress.stage >= len(steps):
        return _shut(pools.values()) or Turn(progress.model_copy(update={"phase": Phase.DONE}))
    stage = steps[progress.stage]
    return _reach(progress, stage, view, canary) or _keep(progress, stage, view, canary)


def _reach(progress: Progress, stage: Stage, view: View, canary: Canary) -> Action | None:
    """Return what is missing until a step's servers run the new release."""
    pool = view.pools[stage.pool]
    if trouble := [f"{s.name} {s.trouble}" for p in view.pools.values() for s in p.servers if s.new and s.trouble]:
        return _fails(progress, "; ".join(trouble), view)
    if not pool.new:
        return _late(progress, f"{pool.name} has not got the release yet", view, canary)
    if pool.partition != (partition := max(0, pool.replicas - stage.count)):
        return Open(pool.name, partition)
    ready = sum(s.new and s.ready for s in pool.servers)
    if ready > progress.reached:
        return _nearer(progress, ready, view)
    if ready < stage.count:
        return _late(progress, f"{stage.label}: {ready} of {stage.count} {pool.name} ready", view, canary)
    return None


def _keep(progress: Progress, stage: Stage, view: View, canary: Canary) -> Action:
    """Return what a step whose servers run waits for: its promises, kept for as long as they must be."""
    judged = view.judged
    if judged is None or view.now - judged.at >= canary.judge_s:
        return Judge()
    if judged.bad:
        return _fails(progress, judged.bad, view)
    if judged.pending:
        return _late(progress, judged.pending, view, canary)
    if progress.settled is None:
        return Turn(progress.model_copy(update={"settled": view.now}))
    if (left := canary.soak_s - (view.now - progress.settled)) > 0:
        return Wait(f"{stage.label}: {left:.0f} s to go")
    changes = {"stage": progress.stage + 1, "reached": 0, "since": view.now, "settled": None}
    return Turn(progress.model_copy(update=changes))


def _fails(progress: Progress, reason: str, view: View) -> Turn:
    return Turn(back(progress, reason, view.now))


def _nearer(progress: Progress, reached: int, view: View) -> Turn:
    """Another server is ready: the next one is waited for anew, for pods are replaced one by one."""
    return Turn(progress.model_copy(update={"reached": reached, "since": view.now}))


def _late(progress: Progress, why: str, view: View, canary: Canary) -> Action:
    took = view.now - progress.since
    if took > canary.patience_s:
        return _fails(progress, f"{why}, {took:.0f} s after the last server became ready", view)
    if progress.settled is not None:  # promises are kept without a break
        return Turn(progress.model_copy(update={"settled": None}))
    return Wait(why)


def _back(progress: Progress, view: View, canary: Canary) -> Action:
    """First nothing spreads, then what was there comes back, at last all is shut again."""
    pools = view.pools.values()
    if shut := _shut(p for p in pools if p.new):
        return shut
    if not view.restored:
        return Restore()
    if (reached := sum(s.ready and not s.new for p in pools for s in p.servers)) > progress.reached:
        return _nearer(progress, reached, view)
    took = view.now - progress.since
    if took <= canary.patience_s and (action := _replace(pools)):
        return action
    there = pools if progress.before is not None else ()
    left = [s.name for p in there for s in p.servers if s.new or not s.ready]
    if left and took <= canary.patience_s:
        return Wait(f"not back yet: {', '.join(left[:3])}")
    reason = f"{progress.reason}; after {took:.0f} s not back: {', '.join(left)}" if left else progress.reason
    failed = progress.model_copy(update={"phase": Phase.FAILED, "reason": reason})
    return _shut(pools) or Turn(failed)


def _replace(pools: Iterable[Pool]) -> Action | None:
    """Return what lets servers of the release go, where something does."""
    for pool in pools:
        named = [s.name for s in pool.servers if s.new]
        if named and not pool.new and pool.partition:
            return Open(pool.name, 0)
        if named and pool.new and pool.split:
            return Recall(named[-1])
    return None


def _shut(pools: Iterable[Pool]) -> Open | None:
    """Return what shuts the first pool that is open."""
    found = [p for p in pools if p.partition != CLOSED]
    return Open(found[0].name, CLOSED) if found else None
