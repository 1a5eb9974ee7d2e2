"""Which nodes a server's pod may run on, and which of them suit best.

Rules: pure; whatever is in doubt is refused, with a reason that many nodes can share. A score is 0 to 10.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from pipeline.catalog.names import RunnerClass
from pipeline.control.scheduler.needs import Needs, Release
from pipeline.control.scheduler.nodes import Machine, Node
from pipeline.control.scheduler.pods import Wanted

MAX_SCORE = 10
_FAR_MS = 50.0  # from this round trip on a node is as far as can be


class Why(StrEnum):
    """What kind of reason a node is refused for."""

    POD = "pod"
    RELEASE = "release"
    UNKNOWN = "unknown"
    TARGET = "target"
    PROOF = "proof"
    NVLINK = "nvlink"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node, or every node, is refused."""

    why: Why
    text: str


@dataclass(frozen=True)
class Settings:
    """What a site decides.

    `accept` takes another runner class's evidence for a board's, where that is said; what a score is made of: the
    points for a model that lies on the node, for being near, and for fitting tightly (GPUs) or with room (memory).
    """

    accept: Mapping[RunnerClass, RunnerClass] = field(default_factory=dict)
    model_points: int = 5
    near_points: int = 3
    fit_points: int = 2

    def __post_init__(self) -> None:
        points = (self.model_points, self.near_points, self.fit_points)
        if min(points) < 0 or sum(points) > MAX_SCORE:
            raise ValueError(f"a score's parts are not negative and add up to at most {MAX_SCORE}")


def needed(wanted: Wanted, release: Release, now: datetime) -> Needs | Refusal:
    """Return what a pod needs, or why it may run nowhere."""
    if now >= release.expires:
        return Refusal(Why.RELEASE, f"release {release.version} expired on {release.expires:%Y-%m-%d}")
    needs = release.variants.get(wanted.variant)
    if needs is None:
        return Refusal(Why.RELEASE, f"release {release.version} has no {wanted.variant[:80]}")
    if wanted.model is not None and wanted.model != needs.model:
        return Refusal(Why.POD, f"the pod names another model than release {release.version}'s {needs.variant}")
    return needs


def filter(  # noqa: A001 - the extender's verb
    needs: Needs, names: Iterable[str], nodes: Mapping[str, Node], settings: Settings
) -> dict[str, Refusal | None]:
    """Return of each node why it is refused, None where it is not."""
    asked: dict[Machine, Refusal | None] = {}
    found: dict[str, Refusal | None] = {}
    for name in names:
        node = nodes.get(name)
        if node is None:
            found[name] = _UNSEEN
            continue
        machine = node.machine
        if machine not in asked:
            asked[machine] = refused(needs, machine, settings)
        found[name] = asked[machine]
    return found


_UNSEEN = Refusal(Why.UNKNOWN, "nothing is known of the node yet")


def refused(needs: Needs, machine: Machine, settings: Settings) -> Refusal | None:
    """Return why a variant may not run on a machine, None where it may."""
    if machine.target is not needs.target:
        what = machine.target or "of an unknown instruction set"
        return Refusal(Why.TARGET, f"the node is {what}, {needs.variant} is for {needs.target}")
    if (why := _unproven(needs, machine, settings)) is not None:
        return Refusal(Why.PROOF, why)
    return _too_few_gpus(needs, machine) or _too_small(needs, machine)


def _unproven(needs: Needs, machine: Machine, settings: Settings) -> str | None:
    runner = needs.asked_of(machine.board)
    nothing = f"{needs.variant} is not proven on {runner}: there is no evidence"
    why = needs.unproven.get(runner, nothing)
    other = settings.accept.get(runner)
    return why if why is None or other is None else needs.unproven.get(other, why)


def _too_few_gpus(needs: Needs, machine: Machine) -> Refusal | None:
    if needs.gpus <= 1:
        return None
    if machine.gpus < needs.gpus:
        return Refusal(Why.NVLINK, f"{needs.variant} is split over {needs.gpus} GPUs, the node has {machine.gpus}")
    if machine.islands is None:
        return Refusal(Why.NVLINK, "the node does not say which of its GPUs NVLink joins")
    if max(machine.islands) < needs.gpus:
        return Refusal(
            Why.NVLINK, f"NVLink joins at most {max(machine.islands)} of the node's GPUs, {needs.gpus} are needed"
        )
    if machine.gpu_memory is not None and machine.gpu_memory * needs.gpus < needs.weights:
        return Refusal(
            Why.MEMORY, f"{needs.gpus} GPUs of {_gib(machine.gpu_memory)} do not hold {_gib(needs.weights)} of weights"
        )
    return None


def _too_small(needs: Needs, machine: Machine) -> Refusal | None:
    if needs.memory is None:
        return Refusal(Why.MEMORY, f"the memory that {needs.variant} takes was not measured")
    if machine.memory is None:
        return Refusal(Why.MEMORY, "the node does not say how much memory it has")
    if machine.memory < needs.memory:
        return Refusal(
            Why.MEMORY, f"{needs.variant} took {_gib(needs.memory)} of memory, the node has {_gib(machine.memory)}"
        )
    return None


def score(needs: Needs, wanted: Wanted, node: Node | None, settings: Settings) -> int:
    """Return how well a node suits that is not refused, 0 to 10; 0 for one that is not known."""
    if node is None:
        return 0
    there = settings.model_points if needs.model in node.models else 0
    near, fit = settings.near_points * _nearness(wanted, node), settings.fit_points * _fit(needs, node.machine)
    return there + round(near + fit)


def _nearness(wanted: Wanted, node: Node) -> float:
    if wanted.near is not None and node.zone == wanted.near:
        return 1.0
    return 0.0 if node.latency_ms is None else max(0.0, 1 - node.latency_ms / _FAR_MS)


def _fit(needs: Needs, machine: Machine) -> float:
    """1 where GPUs are joined in a group of that size (larger ones are left to larger models), or memory is ample."""
    if needs.gpus > 1:
        return 1.0 if machine.islands and needs.gpus in machine.islands else 0.0
    if not needs.memory or not machine.memory:
        return 0.0
    return min(1.0, max(0.0, machine.memory / needs.memory - 1))


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
