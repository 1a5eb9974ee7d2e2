"""States of a fleet for the controller's decisions, and a fleet that does at once what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.control.actions import Actions, Evict, PreWarm, Scale, SetPolicy
from pipeline.control.decide import decide
from pipeline.control.memory import Memory, Mode
from pipeline.control.settings import PoolSettings, Settings
from pipeline.control.state import Gateway, Host, Node, Pod, Pool, Server, State

VARIANT = "large-x86_64"
SETTINGS = Settings(pools=[PoolSettings(name="large", least=0, most=6, slots=8, service_s=1.0, gpus=4, usd_h=10.0)])
STEP_S = 15.0


def gateway(**known: Any) -> Gateway:
    """Return a gateway about which all is known and well; `known` changes that."""
    usual: dict[str, Any] = {
        "name": "gateway-1",
        "policy": SETTINGS.policy_of(Mode.NORMAL, 1),
        "qps": {VARIANT: 4.0},
        "missed_qps": 0.0,
        "core_usable": 1,
        "core_round_trip_ms": 20.0,
        "burn": {"edge_p95": 0.2, "global_p95": 0.2},
    }
    return Gateway(**{**usual, **known})


def nodes(busy: int, idle: int, site: str = "") -> tuple[Node, ...]:
    """Return nodes of a site."""
    return tuple(
        Node(f"pi-{i}", site, ready=True, cpu=0.95 if i < busy else 0.2, queue_wait_ms=0.0) for i in range(busy + idle)
    )


def server(**known: Any) -> Server:
    """Return a large server with room."""
    usual: dict[str, Any] = {
        "name": "gpu-1",
        "pool": "large",
        "ready": True,
        "running": 2,
        "waiting": 0,
        "queue_wait_ms": 0.0,
        "nvlink": True,
    }
    return Server(**{**usual, **known})


def state(**known: Any) -> State:
    """Return a fleet of one gateway, four nodes and one large server, in which nothing is to be done."""
    usual: dict[str, Any] = {
        "at": 0.0,
        "gateways": (gateway(),),
        "nodes": nodes(0, 4),
        "servers": (server(),),
        "pools": (Pool("large", replicas=1, ready=1, unschedulable=0),),
    }
    return State(**{**usual, **known})


def batch(name: str, **known: Any) -> Pod:
    """Return a batch pod with two GPUs."""
    usual: dict[str, Any] = {"host": "nv-1", "priority": -10, "gpus": 2, "batch": True}
    return Pod("jobs", name, f"uid-{name}", **{**usual, **known})


def host(**known: Any) -> Host:
    """Return a machine with four GPUs, all of them taken."""
    usual: dict[str, Any] = {"name": "nv-1", "gpus": 4, "gpus_free": 0, "linked": 4, "pools": ("large",)}
    return Host(**{**usual, **known})


def crowded(*pods: Pod, **known: Any) -> State:
    """Return a fleet in a burst with a replica that found no place."""
    usual: dict[str, Any] = {
        "gateways": (gateway(qps={VARIANT: 9.0}),),
        "pools": (Pool("large", replicas=2, ready=1, unschedulable=1),),
        "hosts": (host(),),
        "pods": pods,
    }
    return state(**{**usual, **known})


def done(before: State, actions: Actions) -> State:
    """Return the fleet after the actions."""
    for action in actions:
        match action:
            case SetPolicy():
                found = [replace(g, policy=action.policy) if g.name == action.gateway else g for g in before.gateways]
                before = replace(before, gateways=tuple(found))
            case Scale() | PreWarm():
                pools = [replace(p, replicas=action.replicas) if p.name == action.pool else p for p in before.pools]
                before = replace(before, pools=tuple(pools))
            case Evict():
                before = replace(before, pods=tuple(p for p in before.pods if p.uid != action.uid))
    return before


def lasting(
    what: State, seconds: float, memory: Memory | None = None, settings: Settings = SETTINGS, start: float = 0.0
) -> tuple[list[tuple[float, Actions]], Memory]:
    """Return what is decided while a state lasts, apart from what the actions change in it, and what is kept."""
    memory, found = memory or Memory(), []
    for step in range(int(seconds / STEP_S) + 1):
        now = start + step * STEP_S
        actions, memory = decide(what, memory, settings, now)
        what = done(what, actions)
        found.append((now, actions))
    return found, memory


def all_of(rounds: Sequence[tuple[float, Actions]]) -> list[tuple[str, str]]:
    """Return every action's kind and reason, in order."""
    return [(str(a.kind), str(a.reason)) for _, actions in rounds for a in actions]
