"""What to do next: a pure function of what was observed, what is remembered, the settings and the time.

Rules: no I/O, no clock, no randomness: the same four arguments give the same actions, in the same order, here, in the
simulation and in a replay of the log. Policies first, for they act within a second; then replicas; then evictions.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.control.actions import Action, Actions, Evict, Reason
from pipeline.control.demand import loads
from pipeline.control.evict import evictions
from pipeline.control.memory import Memory, Mode, Sizing
from pipeline.control.settings import Settings
from pipeline.control.size import View, Wish, affordable, scale, size
from pipeline.control.state import Pool, State
from pipeline.control.steer import steer_all

_BURSTS = frozenset({Reason.DEMAND, Reason.QUEUE_WAIT, Reason.SLO_BURN})


def decide(state: State, memory: Memory, settings: Settings, now: float) -> tuple[Actions, Memory]:
    """Return what to do now, and what to remember; nothing where nothing is to be done."""
    memory = memory.until(now)
    gateways, policies = steer_all(state, memory.gateways, settings, now)
    pools, scaled = _scaled(state, memory, settings, now)
    after = Memory(gateways, pools, memory.evicted_at)
    evicted = _evicted(state, after, settings, now)
    return (*policies, *scaled, *evicted), replace(after, evicted_at=now) if evicted else after


def _scaled(state: State, memory: Memory, settings: Settings, now: float) -> tuple[dict[str, Sizing], list[Action]]:
    kept: dict[str, Sizing] = {}
    wishes: dict[str, Wish] = {}
    actions: list[Action] = []
    views = _views(state, settings)
    for name, view in views.items():
        kept[name], wishes[name] = size(view, memory.pools.get(name), settings.scaling, now)
    for name, wish in affordable(wishes, settings.pools, settings.cost_cap_usd_h).items():
        kept[name], action = scale(views[name], wish, kept[name], now)
        if action is not None:
            actions.append(action)
    return kept, actions


def _views(state: State, settings: Settings) -> dict[str, View]:
    found = loads(state.gateways, state.servers, settings.pools)
    expected, seen = {e.pool: e for e in state.expected}, {p.name: p for p in state.pools}
    # The fastest burn at any gateway; None where none was heard of.
    burn = max((g.burn["global_p95"] for g in state.gateways if g.burn and "global_p95" in g.burn), default=None)
    follows = settings.acting.actor == "autoscaler"
    return {
        p.name: View(p, seen.get(p.name, Pool(p.name)), found[p.name], expected.get(p.name), burn, follows)
        for p in settings.pools
    }


def _evicted(state: State, memory: Memory, settings: Settings, now: float) -> list[Evict]:
    if memory.evicted_at is not None and now - memory.evicted_at < settings.eviction.pause_s:
        return []
    offloading = any(g.mode is Mode.OFFLOAD for g in memory.gateways.values())
    for pool in sorted(settings.pools, key=lambda p: (-p.rank, p.name)):
        if offloading or memory.pools[pool.name].reason in _BURSTS:
            found = evictions(pool, state, settings.eviction)
            if found:
                return found  # one pool a round: the next one's places may be the same
    return []
