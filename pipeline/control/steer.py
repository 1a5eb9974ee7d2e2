"""Which policy each gateway is to have.

Rules, each of which a test states:
- a mode changes only after its reason lasted `confirm_s`, and never twice within `pause_s`;
- the way into a mode lies apart from the way out of it;
- a gateway whose core is far prefers the edge though it is busy; a full core is offloaded to no sooner;
- what is unknown changes nothing; a gateway that was not heard of is sent nothing;
- a policy that somebody else pushed is left alone for `foreign_s`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pipeline.control.actions import Reason, SetPolicy
from pipeline.control.memory import Mode, Steering
from pipeline.control.settings import Settings
from pipeline.control.state import Gateway, Node, Server, State
from pipeline.peers.policy import Policy


@dataclass(frozen=True, slots=True)
class Site:
    """The edge nodes of a site: all, those that were heard of, and those of them that are busy."""

    nodes: int = 0
    known: int = 0
    busy: int = 0


@dataclass(frozen=True, slots=True)
class Around:
    """What stands around a gateway: its site, and whether requests would wait at every large server."""

    site: Site = Site()
    full: bool | None = None


@dataclass(frozen=True, slots=True)
class Leaning:
    """The mode that the state asks for, with why."""

    mode: Mode
    reason: Reason
    detail: str


def sites(nodes: Iterable[Node], policy: Policy) -> dict[str, Site]:
    """Return how busy the edge is at each site; a node that is known not to be ready counts as busy."""
    counts: dict[str, list[int]] = {}
    for node in nodes:
        found = counts.setdefault(node.site, [0, 0, 0])
        found[0] += 1
        busy = _busy(node, policy)
        if busy is not None:
            found[1] += 1
            found[2] += busy
    return {site: Site(*found) for site, found in counts.items()}


def core_full(servers: Iterable[Server], settings: Settings) -> bool | None:
    """Return whether a new request would wait too long at every large server; None where none was heard of."""
    waits = [s.queue_wait_ms for s in servers if s.ready and s.queue_wait_ms is not None]
    return min(waits) > settings.scaling.queue_wait_ms if waits else None


def steer(
    gateway: Gateway, before: Steering | None, around: Around, settings: Settings, now: float
) -> tuple[Steering | None, SetPolicy | None]:
    """Return what is kept of a gateway, and the policy to put in force there, if it is another one."""
    if gateway.policy is None:
        return before, None
    if before is None:
        before = _found(gateway.policy, settings, now)
    after = _turned(before, _leaning(gateway, before, around, settings), settings, now)
    return _pushed(gateway, before, after, settings, now)


def _busy(node: Node, policy: Policy) -> bool | None:
    if node.ready is None or (node.ready and node.cpu is None and node.queue_wait_ms is None):
        return None
    hot = node.cpu is not None and node.cpu > policy.cpu
    waits = node.queue_wait_ms is not None and node.queue_wait_ms > policy.queue_wait_ms
    return not node.ready or hot or waits


def _found(policy: Policy, settings: Settings, now: float) -> Steering:
    """Return what is known of a gateway that is met for the first time: another leader may have steered it."""
    modes = [mode for mode in Mode if _same(policy, settings.policy_of(mode, policy.version))]
    foreign = not modes and policy.version > settings.policy.version
    mode = modes[0] if modes else Mode.NORMAL
    return Steering(mode, now, version=policy.version, foreign_since=now if foreign else None)


def _leaning(gateway: Gateway, before: Steering, around: Around, settings: Settings) -> Leaning | None:
    """Return the mode the state asks for; None where it does not say."""
    return _core(gateway, before, settings) or _edge(gateway, before, around, settings)


def _core(gateway: Gateway, before: Steering, settings: Settings) -> Leaning | None:
    trip, far_ms = gateway.core_round_trip_ms, settings.policy.core_far_ms * settings.routing.far
    was = before.mode is Mode.EDGE_FIRST
    if gateway.core_usable == 0:
        return Leaning(Mode.EDGE_FIRST, Reason.CORE_DOWN, "no NVLink endpoint is usable")
    if trip is None or gateway.core_usable is None:
        return Leaning(before.mode, before.reason, "the core was not heard of") if was else None
    bound = settings.policy.core_far_ms * settings.routing.near if was else far_ms
    if trip > bound:
        return Leaning(Mode.EDGE_FIRST, Reason.CORE_FAR, f"{trip:.0f} ms to the core, more than {bound:.0f}")
    return None


def _edge(gateway: Gateway, before: Steering, around: Around, settings: Settings) -> Leaning | None:
    rules, was = settings.routing, before.mode is Mode.OFFLOAD
    site, full = around.site, around.full
    share = site.busy / site.known if site.nodes and site.known >= site.nodes * rules.known else None
    burn = None if gateway.burn is None else gateway.burn.get("edge_p95")
    if full and was:
        return Leaning(Mode.NORMAL, Reason.CORE_FULL, "requests wait at every large server")
    if share is not None and share > (rules.calm if was else rules.busy) and not full:
        return Leaning(Mode.OFFLOAD, Reason.EDGE_BUSY, f"{site.busy} of {site.known} nodes are busy")
    if burn is not None and burn > (rules.burn_calm if was else rules.burn) and not full:
        return Leaning(Mode.OFFLOAD, Reason.EDGE_BURN, f"edge_p95 burns at {burn:.1f}")
    if was and share is None and (site.nodes or burn is None):
        return None
    near = before.mode is Mode.EDGE_FIRST
    reason = Reason.CORE_NEAR if near else Reason.EDGE_CALM
    return Leaning(Mode.NORMAL, reason, "the core is near again" if near else "the edge is calm again")


def _turned(before: Steering, leaning: Leaning | None, settings: Settings, now: float) -> tuple[Steering, str]:
    rules = settings.routing
    if leaning is None or leaning.mode is before.mode:
        return replace(before, leaning=None), ""
    if before.leaning is not leaning.mode:
        before = replace(before, leaning=leaning.mode, leaning_since=now)
    if now - before.leaning_since < rules.confirm_s or now - before.since < rules.pause_s:
        return before, ""
    return replace(before, mode=leaning.mode, since=now, reason=leaning.reason, leaning=None), leaning.detail


def _pushed(
    gateway: Gateway, before: Steering, turned: tuple[Steering, str], settings: Settings, now: float
) -> tuple[Steering, SetPolicy | None]:
    after, detail = turned
    policy = gateway.policy
    assert policy is not None, "a gateway without one is left alone"
    wanted = settings.policy_of(after.mode, policy.version)
    if _same(policy, wanted):
        return replace(after, version=policy.version, foreign_since=None), None
    foreign = after.foreign_since
    if foreign is None and policy.version > after.version:
        foreign = now
    if foreign is not None and now - foreign < settings.routing.foreign_s:
        return replace(before, foreign_since=foreign), None
    version = _version(policy, before, after, settings)
    reason = after.reason if foreign is None else Reason.RESTORED
    after = replace(after, version=version, foreign_since=None)
    return after, SetPolicy(gateway.name, wanted.model_copy(update={"version": version}), reason, detail)


def _version(policy: Policy, before: Steering, after: Steering, settings: Settings) -> int:
    """Return a version that the gateway takes; one that was asked for and did not arrive is asked for again."""
    if after.mode is before.mode and after.version > policy.version:
        return after.version
    return max(policy.version, after.version, settings.policy.version) + 1


def _same(one: Policy, other: Policy) -> bool:
    return one.model_copy(update={"version": other.version}) == other


def steer_all(
    state: State, before: Mapping[str, Steering], settings: Settings, now: float
) -> tuple[dict[str, Steering], list[SetPolicy]]:
    """Return what is kept of every gateway, and the policies to put in force."""
    edges, full = sites(state.nodes, settings.policy), core_full(state.servers, settings)
    kept: dict[str, Steering] = {}
    actions: list[SetPolicy] = []
    for gateway in state.gateways:
        around = Around(edges.get(gateway.site, Site()), full)
        steering, action = steer(gateway, before.get(gateway.name), around, settings, now)
        if steering is not None:
            kept[gateway.name] = steering
        if action is not None:
            actions.append(action)
    return kept, actions
