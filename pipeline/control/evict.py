"""Which batch pods yield where a burst wants replicas that have no place.

Rules, each of which a test states:
- only pods marked batch, below the priority of the settings, that no disruption budget keeps;
- only for a pool whose replicas found no place, while an edge burst asks for it;
- on the host where the fewest must go to make one whole place, of those that the replica may be put on, and nowhere if
  that makes none;
- what is unknown evicts nobody; at most a few a round, and a pause after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.control.actions import Evict, Reason
from pipeline.control.settings import Eviction, PoolSettings
from pipeline.control.state import Host, Pod, State


def evictions(pool: PoolSettings, state: State, rules: Eviction) -> list[Evict]:
    """Return who is to go so that one more replica of a pool finds a place."""
    lacking = sum(p.unschedulable or 0 for p in state.pools if p.name == pool.name)
    if not rules.enabled or not lacking or not pool.gpus:
        return []
    on: dict[str, list[Pod]] = {}
    for pod in state.pods:
        on.setdefault(pod.host, []).append(pod)
    able = [host for host in state.hosts if pool.name in host.pools]
    found = [_makes_room(pool, host, on.get(host.name, []), state.budgets, rules) for host in able]
    ways = [way for way in found if way is not None]
    # No pod is to go where there is a place already, or where those that were asked to go make one.
    if not ways or any(not way for way in ways):
        return []
    chosen = min(ways, key=lambda way: (len(way), max(p.priority for p in way), [p.uid for p in way]))
    detail = f"{lacking} replicas of {pool.name} have no place; {chosen[0].host} is to have {pool.gpus} GPUs"
    return [Evict(p.namespace, p.name, p.uid, pool.name, Reason.BURST, detail) for p in chosen[: rules.most]]


def _makes_room(
    pool: PoolSettings, host: Host, pods: Sequence[Pod], budgets: Mapping[str, int], rules: Eviction
) -> list[Pod] | None:
    """Return the fewest pods whose end makes a place on a host; None where that cannot be."""
    joined = host.gpus if host.linked is None else min(host.gpus, host.linked)
    if host.gpus_free is None or joined < pool.gpus:
        return None
    short = pool.gpus - host.gpus_free - sum(p.gpus for p in pods if p.ending)
    left, chosen = dict(budgets), []
    for pod in sorted(pods, key=lambda p: (p.priority, -p.gpus, p.uid)):
        if short <= 0:
            break
        if _may_go(pod, rules) and all(left.get(name, 0) > 0 for name in pod.budgets):
            chosen.append(pod)
            short -= pod.gpus
            for name in pod.budgets:
                left[name] -= 1
    return chosen if short <= 0 else None


def _may_go(pod: Pod, rules: Eviction) -> bool:
    return pod.batch and not pod.ending and pod.gpus > 0 and pod.priority < rules.below
