"""The controller's decisions: the rules as tables of cases, and what holds whatever happens to a fleet."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.control.actions import Actions, Evict, PreWarm, Scale, SetPolicy
from pipeline.control.decide import decide
from pipeline.control.memory import Memory, Mode
from pipeline.control.settings import Acting, Eviction, PoolSettings, Settings, parse_settings
from pipeline.control.state import Expected, Gateway, Host, Node, Pod, Pool, Server, State
from pipeline.errors import CatalogError
from tests.support.controlled import (
    SETTINGS,
    STEP_S,
    VARIANT,
    all_of,
    batch,
    crowded,
    done,
    gateway,
    host,
    lasting,
    nodes,
    server,
    state,
)  # fmt: skip

PAUSE = SETTINGS.routing.pause_s
FAR = SETTINGS.policy.core_far_ms


def case(name: str, what: State, *expected: tuple[str, str]) -> object:
    return pytest.param(what, list(expected), id=name)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        case("all is well", state()),
        case("busy edge", state(nodes=nodes(3, 1)), ("set_policy", "edge_busy")),
        case("60 % busy is not too many", state(nodes=nodes(3, 2))),
        case("edge burns", state(gateways=(gateway(burn={"edge_p95": 4.0}),)), ("set_policy", "edge_burn")),
        case("busy edge, full core", state(nodes=nodes(4, 0), servers=(server(queue_wait_ms=501.0, waiting=3),),
             pools=(Pool("large", 6, 6, 0),))),
        case("core far", state(gateways=(gateway(core_round_trip_ms=FAR + 1),)), ("set_policy", "core_far")),
        case("core far and edge busy", state(gateways=(gateway(core_round_trip_ms=FAR + 1),), nodes=nodes(4, 0)),
             ("set_policy", "core_far")),
        case("core at its bound", state(gateways=(gateway(core_round_trip_ms=FAR),))),
        case("core down", state(gateways=(gateway(core_usable=0, core_round_trip_ms=None),)),
             ("set_policy", "core_down")),
        case("core unknown", state(gateways=(gateway(core_usable=None, core_round_trip_ms=None),))),
        case("nodes unknown", state(nodes=tuple(replace(n, cpu=None, queue_wait_ms=None) for n in nodes(4, 0)))),
        case("half of the nodes are enough",
             state(nodes=tuple(replace(n, ready=None) if i < 2 else n for i, n in enumerate(nodes(4, 0)))),
             ("set_policy", "edge_busy")),
        case("nodes of another site", state(nodes=nodes(4, 0, site="elsewhere"))),
        case("another policy in force", state(gateways=(gateway(policy=SETTINGS.policy.model_copy(
             update={"cpu": 0.5})),)), ("set_policy", "first")),
        case("gateway not heard of", state(gateways=(Gateway("gateway-1"),), nodes=nodes(4, 0))),
    ],
)  # fmt: skip
def test_a_gateway_is_steered_by_what_lasts(what: State, expected: list[tuple[str, str]]) -> None:
    """Each reason has a case, at its bound and beside it; one change, then rest."""
    what = replace(
        what, gateways=tuple(replace(g, qps=None if g.qps is None else {VARIANT: 4.0}) for g in what.gateways)
    )
    found, _ = lasting(what, 2 * PAUSE)
    assert [a for a in all_of(found) if a[0] == "set_policy"] == expected


def test_a_reason_that_does_not_last_changes_nothing() -> None:
    """A busy edge of 15 seconds, again and again, flips no policy."""
    memory, busy, calm = lasting(state(), PAUSE)[1], state(nodes=nodes(4, 0)), state()
    for step in range(40):
        actions, memory = decide(busy if step % 2 else calm, memory, SETTINGS, PAUSE + step * STEP_S)
        assert not actions


def test_a_mode_ends_only_past_its_way_out() -> None:
    """Between the way in and the way out the mode stays as it is, both ways."""
    between = state(nodes=nodes(2, 2))
    found, memory = lasting(state(nodes=nodes(4, 0)), 2 * PAUSE)
    offloading = done(between, found[-1][1])
    _, memory = lasting(offloading, PAUSE, memory, start=3 * PAUSE)
    assert memory.gateways["gateway-1"].mode is Mode.OFFLOAD
    found, memory = lasting(state(nodes=nodes(1, 3)), PAUSE, memory, start=5 * PAUSE)
    assert ("set_policy", "edge_calm") in all_of(found)
    _, memory = lasting(between, PAUSE, memory, start=7 * PAUSE)
    assert memory.gateways["gateway-1"].mode is Mode.NORMAL


def test_without_known_nodes_the_burn_alone_leads_out() -> None:
    """A site whose nodes nobody tells of would be offloaded for ever; one whose nodes are silent waits for them."""
    burning = state(gateways=(gateway(burn={"edge_p95": 4.0}),), nodes=())
    _, memory = lasting(burning, PAUSE + STEP_S)
    assert memory.gateways["gateway-1"].mode is Mode.OFFLOAD
    for seen, mode in (((), Mode.NORMAL), ((Node("pi-1"),), Mode.OFFLOAD)):
        calm = state(gateways=(gateway(policy=SETTINGS.policy_of(Mode.OFFLOAD, 2)),), nodes=seen)
        _, after = lasting(calm, 2 * PAUSE, memory, start=PAUSE + 2 * STEP_S)
        assert after.gateways["gateway-1"].mode is mode


def test_a_new_leader_finds_the_mode_in_force() -> None:
    """Nothing is pushed where a policy is that of a mode, and the pause begins anew."""
    version = 7
    taken = state(gateways=(gateway(policy=SETTINGS.policy_of(Mode.OFFLOAD, version)),))
    actions, memory = decide(taken, Memory(), SETTINGS, 0.0)
    assert actions == ()
    assert memory.gateways["gateway-1"].mode is Mode.OFFLOAD
    found, _ = lasting(taken, PAUSE + STEP_S)
    assert [now for now, actions in found if actions] == [PAUSE]


def test_a_gateway_that_answers_late_is_met_for_the_first_time() -> None:
    """Its own policy is nobody else's, and is replaced at once."""
    theirs = SETTINGS.policy.model_copy(update={"cpu": 0.5})
    memory = decide(state(gateways=(Gateway("gateway-1"),)), Memory(), SETTINGS, 0.0)[1]
    (action,) = decide(state(gateways=(gateway(policy=theirs),)), memory, SETTINGS, STEP_S)[0]
    assert (action.kind, action.reason) == ("set_policy", "first")


def test_a_policy_of_somebody_else_is_left_alone_for_a_while() -> None:
    """The last writer wins, until its time is over; then a higher version takes the policy back."""
    _, memory = lasting(state(), PAUSE)
    theirs = SETTINGS.policy.model_copy(update={"version": 9, "cpu": 0.1})
    what = state(gateways=(gateway(policy=theirs),), nodes=nodes(4, 0))
    found, _ = lasting(what, SETTINGS.routing.foreign_s - STEP_S, memory, start=PAUSE)
    assert all_of(found) == []
    found, _ = lasting(what, SETTINGS.routing.foreign_s + STEP_S, memory, start=PAUSE)
    (action,) = [a for _, actions in found for a in actions]
    assert isinstance(action, SetPolicy)
    assert (action.reason, action.policy.version) == ("restored", 10)


def test_a_push_that_did_not_arrive_is_repeated_with_its_version() -> None:
    """The same document, again and again: a gateway that took it says so, and nothing rises."""
    what, memory, versions = (
        state(gateways=(gateway(policy=SETTINGS.policy.model_copy(update={"cpu": 0.5})),)),
        Memory(),
        set(),
    )
    for step in range(5):
        actions, memory = decide(what, memory, SETTINGS, step * STEP_S)
        versions |= {a.policy.version for a in actions if isinstance(a, SetPolicy)}
    assert versions == {2}


def busy(qps: float, replicas: int | None = 1, ready: int | None = None, **known: Any) -> State:
    pools = (Pool("large", replicas, replicas if ready is None else ready, 0),)
    return state(**{"gateways": (gateway(qps={VARIANT: qps}),), "pools": pools, **known})


@pytest.mark.parametrize(
    ("what", "replicas", "reason"),
    [
        pytest.param(busy(5.6), None, None, id="70 % of the slots"),
        pytest.param(busy(5.7), 2, "demand", id="more than 70 %"),
        pytest.param(busy(100.0), 5, "demand", id="a step of four"),
        pytest.param(busy(100.0, 4), 6, "demand", id="at most what the pool may have"),
        pytest.param(busy(1.0, 0), 1, "demand", id="from none"),
        pytest.param(busy(0.0, 0, gateways=(gateway(qps={VARIANT: 9.0}), gateway(name="b", qps=None))), 2, "demand",
                     id="from none, one gateway silent"),
        pytest.param(busy(0.0, 0, gateways=(gateway(qps={}, missed_qps=0.1),)), 1, "demand", id="from none by what was missed"),
        pytest.param(busy(0.0, 0), None, None, id="none for nobody"),
        pytest.param(busy(1.0, 1, gateways=(gateway(qps=None),)), None, None, id="demand unknown"),
        pytest.param(busy(9.0, gateways=(gateway(qps={VARIANT: 9.0}), Gateway("gateway-2"))), 2, "demand", id="at least half of it"),
        pytest.param(busy(4.0, servers=(server(queue_wait_ms=501.0),)), 2, "queue_wait", id="waits"),
        pytest.param(busy(4.0, servers=(server(queue_wait_ms=501.0), server(name="b"))), None, None, id="waits at one of two"),
        pytest.param(busy(4.0, 2, 1, servers=(server(queue_wait_ms=501.0),)), None, None, id="waits, more is coming"),
        pytest.param(busy(4.0, gateways=(gateway(burn={"global_p95": 7.0}),), servers=(server(waiting=1),)), 2, "slo_burn", id="burns"),
        pytest.param(busy(4.0, gateways=(gateway(burn={"global_p95": 7.0}),)), None, None, id="burns, but nobody waits"),
        pytest.param(busy(4.0, servers=(server(nvlink=False),)), 2, "nvlink_down", id="a link is down"),
        pytest.param(busy(4.0, servers=(server(nvlink=None),)), None, None, id="links unknown"),
        pytest.param(busy(4.0, expected=(Expected("large", 20.0, 300.0),)), 4, "expected", id="expected"),
        pytest.param(busy(4.0, expected=(Expected("large", 1.0, 300.0),)), None, None, id="less expected"),
        pytest.param(busy(4.0, None), None, None, id="replicas unknown"),
        pytest.param(busy(4.0, 9), 6, "bounds", id="more than allowed"),
    ],
)  # fmt: skip
def test_a_pool_grows_at_once(what: State, replicas: int | None, reason: str | None) -> None:
    """Each reason for more has a case, at its bound and beside it."""
    actions, _ = decide(what, Memory(), SETTINGS, 0.0)
    scaled = [a for a in actions if isinstance(a, Scale | PreWarm)]
    assert [(a.replicas, a.reason) for a in scaled] == ([] if replicas is None else [(replicas, reason)])
    assert all(isinstance(a, PreWarm) == (a.reason == "expected") for a in scaled)


def test_a_pool_shrinks_slowly_and_to_what_was_needed() -> None:
    """A peak within the time keeps what it needed; two replicas go at a time."""
    high, low = busy(20.0, 6), busy(4.0, 6)
    memory, fewer = Memory(), SETTINGS.scaling.down_s
    for step in range(int(fewer / STEP_S) + 1):
        actions, memory = decide(high if step == 5 else low, memory, SETTINGS, step * STEP_S)
    (action,) = actions
    assert isinstance(action, Scale)
    assert (action.replicas, action.reason) == (5, "low_demand")
    found, _ = lasting(low, 2 * fewer + 2 * STEP_S)
    assert [a.replicas for _, actions in found for a in actions if isinstance(a, Scale)] == [4, 2]


@pytest.mark.parametrize(
    ("what", "to"),
    [
        pytest.param(busy(0.0), 0, id="cold"),
        pytest.param(busy(0.0, expected=(Expected("large", 1.0, 0.0),)), 1, id="somebody is expected"),
        pytest.param(busy(0.01), 1, id="somebody asks"),
        pytest.param(busy(0.0, servers=(server(waiting=1),)), 1, id="somebody waits"),
        pytest.param(busy(0.0, servers=(server(waiting=None),)), 1, id="queue unknown"),
        pytest.param(busy(0.0, gateways=(gateway(qps={}, missed_qps=None),)), 1, id="what was missed is unknown"),
        pytest.param(busy(0.0, gateways=(gateway(qps={}), gateway(name="b", qps=None))), 1, id="one gateway silent"),
    ],
)
def test_a_cold_pool_is_let_go(what: State, to: int) -> None:
    """Nothing is kept for nobody, unless that may be wrong."""
    found, _ = lasting(what, SETTINGS.scaling.idle_s + SETTINGS.scaling.down_s + 2 * STEP_S)
    scaled = [(a.replicas, a.reason) for _, actions in found for a in actions if isinstance(a, Scale)]
    assert scaled == ([(0, "cold")] if to == 0 else [])


@pytest.mark.parametrize(("window_s", "least"), [pytest.param(600.0, 1, id="HPA"), pytest.param(300.0, 0, id="KEDA")])
def test_an_autoscaler_that_comes_after_in_its_time_is_led_down(window_s: float, least: int) -> None:
    """It takes the most that was asked for within its window, and so must be asked for less for as long as that."""
    rules = SETTINGS.model_copy(update={"acting": Acting(actor="autoscaler")})
    memory, replicas, asked, most = Memory(), 1, [], 0
    for step in range(int(4 * 3600 / STEP_S)):
        now = step * STEP_S
        _, memory = decide(busy(20.0 if now < 600 else 0.0, replicas), memory, rules, now)
        asked.append((now, memory.pools["large"].wanted))
        asked = [(at, wanted) for at, wanted in asked if at > now - window_s]
        replicas = max(least, *(wanted for _, wanted in asked))
        most = max(most, replicas)
    assert (most, replicas) == (4, least)


def test_a_clock_that_is_set_back_delays_nothing_for_as_long() -> None:
    """What is remembered of later counts as now."""
    rounds, memory = lasting(busy(100.0), 0.0, start=7200.0)
    assert [a.replicas for _, actions in rounds for a in actions if isinstance(a, Scale)] == [5]
    rounds, _ = lasting(busy(100.0, 5), SETTINGS.scaling.up_s, memory, start=0.0)
    assert [a.replicas for _, actions in rounds for a in actions if isinstance(a, Scale)] == [6]


def test_the_cost_cap_holds_the_lower_rank_back() -> None:
    """Pools of a higher rank are paid first; the least replicas of every pool are paid always."""
    first = PoolSettings(name="first", rank=1, most=9, usd_h=10.0, variants=["a"], missed=False)
    second = PoolSettings(name="second", least=1, most=9, usd_h=10.0, variants=["b"], missed=False)
    rules = Settings(pools=[second, first], cost_cap_usd_h=45.0)
    what = state(gateways=(gateway(qps={"a": 16.0, "b": 16.0}),), pools=(Pool("first", 1, 1), Pool("second", 1, 1)))
    actions, _ = decide(what, Memory(), rules, 0.0)
    assert {a.pool: (a.replicas, a.reason) for a in actions if isinstance(a, Scale)} == {"first": (3, "demand")}
    dear = done(what, actions)
    actions, _ = decide(dear, Memory(), rules.model_copy(update={"cost_cap_usd_h": 25.0}), 0.0)
    assert {a.pool: (a.replicas, a.reason) for a in actions if isinstance(a, Scale)} == {"first": (1, "cost_cap")}


BIG, SMALL = batch("big", gpus=4, priority=-1), batch("small")


@pytest.mark.parametrize(
    ("what", "gone"),
    [
        pytest.param(crowded(BIG), ["big"], id="one makes a place"),
        pytest.param(crowded(SMALL, batch("other")), ["other", "small"], id="two make one"),
        pytest.param(crowded(SMALL), [], id="one is not enough"),
        pytest.param(crowded(replace(BIG, batch=False)), [], id="not batch"),
        pytest.param(crowded(replace(BIG, priority=0)), [], id="too important"),
        pytest.param(crowded(replace(BIG, budgets=("jobs/pdb",)), budgets={"jobs/pdb": 0}), [], id="kept by a budget"),
        pytest.param(crowded(replace(BIG, budgets=("jobs/pdb",))), [], id="budget unknown"),
        pytest.param(crowded(replace(BIG, budgets=("jobs/pdb",)), budgets={"jobs/pdb": 1}), ["big"], id="let go by a budget"),
        pytest.param(crowded(*(replace(p, budgets=("jobs/pdb",)) for p in (SMALL, batch("other"))), budgets={"jobs/pdb": 1}), [],
                     id="a budget for one of two"),
        pytest.param(crowded(replace(BIG, ending=True), SMALL), [], id="one is going already"),
        pytest.param(crowded(BIG, hosts=(host(gpus_free=None),)), [], id="free GPUs unknown"),
        pytest.param(crowded(BIG, hosts=(host(linked=2),)), [], id="NVLink joins too few"),
        pytest.param(crowded(BIG, hosts=(host(gpus=2),)), [], id="host too small"),
        pytest.param(crowded(BIG, hosts=(host(), host(name="nv-2", gpus=8, gpus_free=4))), [], id="a place elsewhere"),
        pytest.param(crowded(SMALL, batch("other"), replace(BIG, host="nv-2"),
                             hosts=(host(), host(name="nv-2"))), ["big"], id="where fewest must go"),
        pytest.param(crowded(BIG, hosts=(host(), host(name="other", gpus_free=4, pools=()))), ["big"], id="a place that it may not take"),
        pytest.param(crowded(BIG, hosts=(host(pools=()),)), [], id="a host that it may not take"),
        pytest.param(crowded(BIG, pools=(Pool("large", 2, 1, 0),)), [], id="all have a place"),
        pytest.param(crowded(BIG, pools=(Pool("large", 2, 1, None),)), [], id="places unknown"),
        pytest.param(crowded(BIG, gateways=(gateway(qps={VARIANT: 4.0}),)), [], id="no burst"),
    ],
)  # fmt: skip
def test_batch_yields_to_a_burst(what: State, gone: list[str]) -> None:
    """Only what makes a place goes, and only what may; then there is a pause."""
    memory = decide(replace(what, pools=(Pool("large", 1, 1, 0),), pods=()), Memory(), SETTINGS, 0.0)[1]
    actions, memory = decide(what, memory, SETTINGS, STEP_S)
    assert sorted(a.pod for a in actions if isinstance(a, Evict)) == gone
    if gone:
        actions, _ = decide(what, memory, SETTINGS, 2 * STEP_S)
        assert not [a for a in actions if isinstance(a, Evict)]


def test_eviction_may_be_forbidden() -> None:
    """With `enabled: false` nobody goes."""
    rules = SETTINGS.model_copy(update={"eviction": Eviction(enabled=False)})
    memory = decide(crowded(BIG, pools=(Pool("large", 1, 1, 0),)), Memory(), rules, 0.0)[1]
    assert decide(crowded(BIG), memory, rules, STEP_S)[0] == ()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("scaling: {calm: 0.7}", id="calm not below target"),
        pytest.param("routing: {near: 1.0}", id="near not within far"),
        pytest.param("pools: [{name: a}, {name: a}]", id="two of a name"),
        pytest.param("pools: [{name: a, least: 5}]", id="least above most"),
        pytest.param("modes: {offload: {cpu: 1.5}}", id="no policy"),
        pytest.param("modes: {normal: {cpu: 0.5}}", id="normal is the policy"),
        pytest.param("modes: {offload: {nonsense: 1}}", id="unknown key"),
    ],
)
def test_settings_that_would_oscillate_or_mean_nothing_are_refused(text: str) -> None:
    """The file says what is wrong before anything is decided by it."""
    with pytest.raises(CatalogError):
        parse_settings(text, "controller.yaml")


def floats(low: float, high: float) -> st.SearchStrategy[float | None]:
    return st.none() | st.floats(low, high, allow_nan=False)


GATEWAYS = st.builds(
    Gateway, st.just("gateway-1"), st.just(""), st.just(SETTINGS.policy), st.none() | st.fixed_dictionaries({VARIANT: st.floats(0, 80)}),
    floats(0, 5), core_usable=st.none() | st.integers(0, 3), core_round_trip_ms=floats(0, 300),
    burn=st.none() | st.fixed_dictionaries({"edge_p95": st.floats(0, 20), "global_p95": st.floats(0, 20)}),
)  # fmt: skip
SERVERS = st.builds(
    Server, st.sampled_from(["a", "b", "c"]), st.just("large"), st.none() | st.booleans(), st.none() | st.integers(0, 9),
    st.none() | st.integers(0, 99), floats(0, 5000), nvlink=st.none() | st.booleans(),
)  # fmt: skip
PODS = st.builds(
    Pod, st.just("jobs"), st.text("ab", min_size=1, max_size=4), st.text("abcdef", min_size=1), st.sampled_from(["nv-1", "nv-2"]),
    st.integers(-5, 5), st.integers(0, 4), st.booleans(), st.booleans(), st.lists(st.sampled_from(["x", "y"]), max_size=2).map(tuple),
)  # fmt: skip
STATES = st.builds(
    State, st.just(0.0), st.tuples(GATEWAYS),
    st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda n: nodes(*n)), st.lists(SERVERS, max_size=3).map(tuple),
    st.tuples(st.builds(Pool, st.just("large"), st.just(1), st.none() | st.integers(0, 6), st.none() | st.integers(0, 3))),
    st.lists(st.builds(Host, st.sampled_from(["nv-1", "nv-2"]), st.just(4), st.none() | st.integers(0, 4), pools=st.just(("large",))), max_size=2).map(tuple),
    st.lists(PODS, max_size=5, unique_by=lambda p: p.uid).map(tuple), st.dictionaries(st.sampled_from(["x", "y"]), st.integers(0, 2)),
    st.lists(st.builds(Expected, st.just("large"), st.floats(0, 80), st.just(0.0)), max_size=1).map(tuple),
)  # fmt: skip


def kept(what: State, before: State) -> State:
    """Return a state in which the controller's own doings are still there."""
    ours = replace(what.gateways[0], policy=before.gateways[0].policy)
    return replace(what, gateways=(ours,), pools=(replace(what.pools[0], replicas=before.pools[0].replicas),))


@given(st.lists(st.tuples(STATES, st.sampled_from([1.0, 15.0, 60.0, 400.0])), min_size=1, max_size=25))
def test_whatever_happens(rounds: list[tuple[State, float]]) -> None:
    """No mode changes twice within its pause, replicas stay within bounds, only batch goes, and doing it twice is once."""
    memory, now, at, flips = Memory(), 0.0, state(pools=(Pool("large", 1, 1, 0),)), []
    for observed, later in rounds:
        now, what = now + later, kept(observed, at)
        mode = memory.gateways["gateway-1"].mode if memory.gateways else Mode.NORMAL
        actions, after = decide(what, memory, SETTINGS, now)
        assert (actions, after) == decide(pickle.loads(pickle.dumps(what)), memory, SETTINGS, now)
        if after.gateways["gateway-1"].mode is not mode:
            flips.append(now)
        holds(actions, what)
        at = done(what, actions)
        assert decide(at, after, SETTINGS, now)[0] == ()
        memory = after
    assert all(b - a >= PAUSE for a, b in pairwise(flips))


def holds(actions: Actions, what: State) -> None:
    """Check what must hold of actions for a state."""
    pods, left = {p.uid: p for p in what.pods}, dict(what.budgets)
    for action in actions:
        match action:
            case Scale() | PreWarm():
                assert 0 <= action.replicas <= SETTINGS.pools[0].most
                assert action.replicas != action.was
                unknown = what.gateways[0].qps is None or what.gateways[0].missed_qps is None
                assert not unknown or action.replicas > action.was
            case SetPolicy():
                assert what.gateways[0].policy is not None
                assert action.policy.version > what.gateways[0].policy.version
            case Evict():
                pod = pods[action.uid]
                assert pod.batch
                assert pod.priority < SETTINGS.eviction.below
                for name in pod.budgets:
                    left[name] = left.get(name, 0) - 1
    assert all(n >= 0 for n in left.values())


def test_windows_and_states_survive_a_round_trip() -> None:
    """The defaults are a file that says the same when it is read again."""
    assert parse_settings(SETTINGS.model_dump_json(), "controller.yaml") == SETTINGS
