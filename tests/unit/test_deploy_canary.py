"""How a release takes over: every rule of the decision, and what holds whatever happens to servers and to the job."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    Server,
    Stage,
    Turn,
    View,
    Wait,
    decide,
    stages,
)
from pipeline.deploy.settings import Canary

HASTY = Canary(share=0.5, soak_s=2, patience_s=60, judge_s=3)
CANARY = Canary(share=0.5, soak_s=10, patience_s=100, judge_s=5)
PROGRESS = Progress(release=2, manifest_sha256="0" * 64, before=1, templates={"node": "t"}, reached=1, since=0.0)


def pool(name: str = "node", new: int = 0, *, of: int = 4, ready: bool = True, **changes: object) -> Pool:
    """A StatefulSet of which the last pods are new."""
    servers = [Server(f"{name}-{i}", i >= of - new, ready or i < of - new) for i in range(of)]
    usual = Pool(name, new=True, partition=CLOSED, replicas=of, split=True, servers=tuple(servers))
    return replace(usual, **changes)  # type: ignore[arg-type]


def view(*pools: Pool, now: float = 20.0, judged: Judged | None = None, restored: bool = False) -> View:
    return View({p.name: p for p in pools}, now, judged, restored)


@pytest.mark.parametrize(
    ("edge", "large", "share", "counts"),
    [
        (1, 0, 0.5, [1]),
        (2, 0, 0.5, [1, 2]),
        (4, 0, 0.5, [1, 2, 4]),
        (1000, 2, 0.25, [1, 250, 1000, 2]),
        (3, 1, 1.0, [1, 3, 1]),
        (0, 1, 0.5, [1]),
    ],
)
def test_steps(edge: int, large: int, share: float, counts: list[int]) -> None:
    """One Pi, a share, all, the NVLink pool; a step that adds nothing is none."""
    assert [s.count for s in stages(edge, large, share)] == counts


FORWARD = [
    pytest.param(view(pool(new=0)), Open("node", 3), id="one Pi is let through"),
    pytest.param(view(pool(new=0, partition=3)), Wait("one Pi: 0 of 1 node ready"), id="until it is ready"),
    pytest.param(view(pool(new=1, partition=3, ready=False)), Wait("one Pi: 0 of 1 node ready"), id="ready it must be"),
    pytest.param(view(pool(new=1, partition=3)), Judge(), id="then it is judged"),
    pytest.param(view(pool(new=1, partition=3), judged=Judged(10.0)), Judge(), id="and again after a while"),
    pytest.param(view(pool(new=1, partition=3), judged=Judged(19.0, pending="no figure")), Wait("no figure"), id="what is not known is waited for"),
    pytest.param(view(replace(pool(new=0), new=False)), Wait("node has not got the release yet"), id="what nobody applied yet is waited for"),
]  # fmt: skip


@pytest.mark.parametrize(("seen", "action"), FORWARD)
def test_going_forward(seen: View, action: object) -> None:
    """Each condition in its order."""
    assert decide(PROGRESS, seen, CANARY) == action


ENDS = [
    pytest.param(view(pool(new=1, partition=3), judged=Judged(19.0, bad="wrong")), "wrong", id="a bad judgement"),
    pytest.param(view(pool(new=1, partition=3, ready=False), now=101.0), "one Pi: 0 of 1 node ready", id="a server too long on its way"),
    pytest.param(view(pool(new=1, partition=3), now=101.0, judged=Judged(100.0, pending="no figure")), "no figure", id="a figure that never comes"),
    pytest.param(view(replace(pool(), new=False), now=101.0), "has not got the release", id="nobody applies it"),
    pytest.param(view(replace(pool(new=1, partition=3), servers=(Server("node-3", True, False, "is in CrashLoopBackOff"),))), "node-3 is in CrashLoopBackOff", id="a crash, at once"),
]  # fmt: skip


@pytest.mark.parametrize(("seen", "reason"), ENDS)
def test_what_ends_a_rollout(seen: View, reason: str) -> None:
    """Each ends it with its reason, and never goes on instead."""
    found = decide(PROGRESS, seen, CANARY)
    assert isinstance(found, Turn)
    assert found.progress.phase is Phase.BACK
    assert reason in (found.progress.reason or "")


def test_trouble_of_old_servers_is_none_of_the_release() -> None:
    """A Pi that was broken before is not held against it."""
    servers = (Server("node-0", False, False, "is in CrashLoopBackOff"), *pool(new=1).servers[1:])
    assert decide(PROGRESS, view(replace(pool(new=1, partition=3), servers=servers)), CANARY) == Judge()


def test_a_step_keeps_its_promises_for_a_while() -> None:
    """Judged good it settles, stays so for the soak, and only then the next step begins."""
    seen = view(pool(new=1, partition=3), judged=Judged(19.0))
    settled = decide(PROGRESS, seen, CANARY)
    assert settled == Turn(PROGRESS.model_copy(update={"settled": 20.0}))
    assert isinstance(settled, Turn)
    assert isinstance(decide(settled.progress, replace(seen, now=23.0), CANARY), Wait)
    later = decide(settled.progress, replace(seen, now=30.0, judged=Judged(29.0)), CANARY)
    assert later == Turn(PROGRESS.model_copy(update={"stage": 1, "reached": 0, "since": 30.0}))


def test_each_server_is_waited_for_anew() -> None:
    """Pods are replaced one by one: another that is ready begins the patience anew, one that comes and goes does not."""
    share = PROGRESS.model_copy(update={"stage": 1})
    wide = CANARY.model_copy(update={"share": 1.0})
    nearer = decide(share, view(pool(new=2, partition=0), now=99.0), wide)
    assert nearer == Turn(share.model_copy(update={"reached": 2, "since": 99.0}))
    assert isinstance(nearer, Turn)
    assert isinstance(decide(nearer.progress, view(pool(new=2, partition=0), now=199.0), wide), Wait)
    assert isinstance(decide(nearer.progress, view(pool(new=1, partition=0), now=199.0), wide), Wait)
    late = decide(nearer.progress, view(pool(new=2, partition=0), now=200.0), wide)
    assert isinstance(late, Turn)
    assert late.progress.phase is Phase.BACK


UNWATCHED = [
    pytest.param(view(pool(new=1, partition=3, ready=False)), id="a server that is not ready"),
    pytest.param(
        view(pool(new=1, partition=3), judged=Judged(19.0, pending="no figure")), id="a figure that is missing"
    ),
    pytest.param(view(replace(pool(new=1), new=False)), id="another template"),
]


@pytest.mark.parametrize("seen", UNWATCHED)
def test_promises_are_kept_without_a_break(seen: View) -> None:
    """What comes between begins the soak anew; the patience it does not."""
    settled = PROGRESS.model_copy(update={"settled": 15.0})
    broken = decide(settled, seen, CANARY)
    assert broken == Turn(PROGRESS)
    assert isinstance(decide(PROGRESS, seen, CANARY), Wait)


def test_after_the_last_step_everything_is_shut() -> None:
    """Nothing passes by itself until the next deploy."""
    last = PROGRESS.model_copy(update={"stage": 3})
    assert decide(last, view(pool(new=4, partition=0)), CANARY) == Open("node", CLOSED)
    assert decide(last, view(pool(new=4)), CANARY) == Turn(last.model_copy(update={"phase": Phase.DONE}))


BACK = PROGRESS.model_copy(update={"phase": Phase.BACK, "reason": "wrong", "reached": 4})
BACKWARD = [
    pytest.param(view(pool(new=2, partition=2)), Open("node", CLOSED), id="first nothing spreads"),
    pytest.param(view(pool(new=2)), Restore(), id="then what was there comes back"),
    pytest.param(view(replace(pool(new=2), new=False), restored=True), Open("node", 0), id="pods follow by themselves"),
    pytest.param(view(pool(new=2), restored=True), Recall("node-3"), id="or are taken, where others apply later"),
    pytest.param(view(pool(new=4, split=False), restored=True), Wait("not back yet: node-0, node-1, node-2"), id="but not where they would come again"),
    pytest.param(view(replace(pool(), new=False, partition=0), restored=True), Open("node", CLOSED), id="at last it is shut"),
    pytest.param(view(replace(pool(), new=False), restored=True), Turn(BACK.model_copy(update={"phase": Phase.FAILED})), id="and at its end"),
]  # fmt: skip


@pytest.mark.parametrize(("seen", "action"), BACKWARD)
def test_going_back(seen: View, action: object) -> None:
    """Each condition in its order."""
    assert decide(BACK, seen, CANARY) == action


def test_each_server_that_goes_back_is_waited_for_anew() -> None:
    """As going forward: another one that is back begins the patience anew."""
    seen = view(replace(pool(new=2, partition=0), new=False), now=99.0, restored=True)
    nearer = decide(BACK.model_copy(update={"reached": 1}), seen, CANARY)
    assert nearer == Turn(BACK.model_copy(update={"reached": 2, "since": 99.0}))


def test_going_back_ends_even_where_it_does_not_succeed() -> None:
    """What is not back after the patience is named, and the rollout ends."""
    found = decide(BACK, view(pool(new=4, split=False), now=101.0, restored=True), CANARY)
    assert isinstance(found, Turn)
    assert found.progress.phase is Phase.FAILED
    assert "not back: node-0" in (found.progress.reason or "")


def test_a_pod_that_never_leaves_is_not_opened_for_again() -> None:
    """After the patience all is shut, and then it ends; nothing is opened once more."""
    stuck = replace(pool(new=1, ready=False), new=False, split=False, partition=0)
    late = view(stuck, now=101.0, restored=True)
    assert decide(BACK, late, CANARY) == Open("node", CLOSED)
    found = decide(BACK, view(replace(stuck, partition=CLOSED), now=101.0, restored=True), CANARY)
    assert isinstance(found, Turn)
    assert found.progress.phase is Phase.FAILED


def test_a_first_release_has_nothing_to_go_back_to() -> None:
    """It ends at once, with the reason."""
    first = BACK.model_copy(update={"before": None})
    assert decide(first, view(pool(new=4, split=False), restored=True), CANARY) == Turn(
        first.model_copy(update={"phase": Phase.FAILED})
    )


@dataclass
class World:
    """StatefulSets as their controller keeps them, one pod at a time, and what goes wrong with the new release.

    `broken` new servers never become ready, `wrong` ones answer wrong.
    """

    sizes: dict[str, int]
    broken: frozenset[str]
    wrong: frozenset[str]
    template: str = "new"
    current: dict[str, str] = field(default_factory=dict)
    partition: dict[str, int] = field(default_factory=dict)
    pods: dict[str, str] = field(default_factory=dict)
    highest: int = 0

    def __post_init__(self) -> None:
        for name, size in self.sizes.items():
            self.current[name], self.partition[name] = "old", CLOSED
            self.pods |= {f"{name}-{i}": "old" for i in range(size)}

    def names(self, pool: str) -> list[str]:
        return [f"{pool}-{i}" for i in range(self.sizes[pool])]

    def ready(self, pod: str) -> bool:
        return self.pods[pod] == "old" or pod not in self.broken

    def tick(self) -> None:
        """Let the controller do one thing for each StatefulSet."""
        for pool in self.sizes:
            for i in reversed(range(min(99, self.partition[pool]), self.sizes[pool])):
                pod = f"{pool}-{i}"
                if self.pods[pod] != self.template:
                    self.pods[pod] = self.template
                    break
                if not self.ready(pod):
                    break
            names = self.names(pool)
            if all(self.pods[n] == self.template and self.ready(n) for n in names):
                self.current[pool] = self.template

    def recall(self, pod: str) -> None:
        name = pod.rpartition("-")[0]
        self.pods[pod] = self.current[name] if self.partition[name] == CLOSED else self.template

    def view(self, now: float, judged: Judged | None, *, restored: bool) -> View:
        pools = {
            name: Pool(
                name, self.template == "new", self.partition[name], size, self.current[name] != self.template,
                tuple(Server(n, self.pods[n] == "new", self.ready(n)) for n in self.names(name)),
            )
            for name, size in self.sizes.items()
        }  # fmt: skip
        return View(pools, now, judged, restored)

    def judge(self, now: float) -> Judged:
        bad = [pod for pod, template in self.pods.items() if template == "new" and pod in self.wrong]
        return Judged(now, bad=f"{bad[0]} is wrong" if bad else None)


def run(world: World, kills: Iterator[bool], *, late: int = 0) -> Progress:
    """Drive a rollout; where `kills` says so the job forgets everything but its progress. Others apply `late` rounds on."""
    progress, judged, restored, pending = PROGRESS, None, False, -1
    for now in range(1500):
        world.tick()
        if pending == 0:
            world.template = "old"
        pending = max(pending - 1, -1)
        if next(kills):
            judged, restored = None, False
        new = sum(template == "new" for template in world.pods.values())
        if progress.phase is Phase.RUNNING:
            world.highest = max(world.highest, new)
        match decide(progress, world.view(float(now), judged, restored=restored), HASTY):
            case Turn(turned):
                judged = judged if turned.stage == progress.stage else None
                progress = turned
            case Open(name, partition):
                world.partition[name] = partition
            case Recall(pod):
                world.recall(pod)
            case Restore():
                restored = True
                pending = pending if pending >= 0 else late
            case Judge():
                judged = world.judge(float(now))
        if progress.phase.ended:
            return progress
    raise AssertionError(f"no end: {progress}")


PODS = [f"node-{i}" for i in range(6)] + ["large-0", "large-1"]


@given(
    edge=st.integers(1, 6), large=st.integers(0, 2), broken=st.frozensets(st.sampled_from(PODS), max_size=2),
    wrong=st.frozensets(st.sampled_from(PODS), max_size=2), late=st.integers(0, 20), seed=st.integers(0, 1 << 16),
)  # fmt: skip
def test_whatever_happens_a_rollout_ends_whole(
    edge: int, large: int, broken: frozenset[str], wrong: frozenset[str], late: int, seed: int
) -> None:
    """Killed at any point it ends with every server on one release, shut; and a faulty one reached no further than its step."""
    sizes = {"node": edge} | ({"large": large} if large else {})
    world = World(sizes, broken, wrong)
    dice = random.Random(seed)
    ended = run(world, (dice.random() < 0.05 for _ in iter(int, 1)), late=late)
    faulty = (broken | wrong) & set(world.pods)
    assert ended.phase is (Phase.FAILED if faulty else Phase.DONE)
    assert set(world.pods.values()) == {"old" if faulty else "new"}
    assert set(world.partition.values()) == {CLOSED}
    assert world.highest <= reach(stages(edge, large, CANARY.share), world, faulty)


def reach(steps: tuple[Stage, ...], world: World, faulty: frozenset[str]) -> int:
    """How many servers a release may have reached before its first faulty one ended it."""
    reached = dict.fromkeys(world.sizes, 0)
    for step in steps:
        reached[step.pool] = step.count
        let = [n for pool, count in reached.items() for n in world.names(pool)[world.sizes[pool] - count :]]
        if faulty & set(let):
            break
    return sum(reached.values())
