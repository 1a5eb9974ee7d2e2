"""Routing: the rules as a table of cases, and what holds for every fleet, request and policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import CatalogError
from pipeline.peers.policy import Policy, parse_policy
from pipeline.peers.status import Pool, State
from pipeline.serving import affinity
from pipeline.serving.decision import Counted, Decision, Declined, Denied, Hint, Priority, Reason, Request, continuing
from pipeline.serving.routing import route
from pipeline.serving.snapshot import Endpoint, Snapshot
from tests.support.fleet import DIGESTS, LARGE, MID, OLD, TINY, TUNED, endpoint, fleet

POLICY = Policy()
SHORT = Request(12)
NEAR, FAR = endpoint("near", round_trip_ms=3.0), endpoint("far", round_trip_ms=9.0)
CORE = endpoint("core", LARGE)
QUEUED = {"busy": 4, "queued": 3}
HOT = {"cpu": 0.93}
FULL = {"busy": 4, "queued": 33}


def case(name: str, request: Request, endpoints: list[Endpoint], expected: str, reason: str) -> object:
    return pytest.param(request, endpoints, expected, reason, id=name)


@pytest.mark.parametrize(
    ("request_", "endpoints", "expected", "reason"),
    [
        case("short prompt to the nearest node", SHORT, [FAR, NEAR, CORE], "near", "tiny_edge"),
        case("hint tiny as well", replace(SHORT, hint=Hint.TINY), [FAR, NEAR, CORE], "near", "tiny_edge"),
        case("63 tokens fit", Request(63), [NEAR, CORE], "near", "tiny_edge"),
        case("64 tokens do not", Request(64), [NEAR, CORE], "core", "long_prompt"),
        case("nor with hint tiny", Request(64, hint=Hint.TINY), [NEAR, CORE], "core", "long_prompt"),
        case("hint large", replace(SHORT, hint=Hint.LARGE), [NEAR, CORE], "core", "hint"),
        case("batch", replace(SHORT, priority=Priority.BATCH), [NEAR, CORE], "core", "batch"),
        case("long answer", replace(SHORT, max_tokens=256), [NEAR, CORE], "core", "long_generation"),
        case("an answer of 255", replace(SHORT, max_tokens=255), [NEAR, CORE], "near", "tiny_edge"),
        case("queue at all nodes", SHORT, [replace(NEAR, **QUEUED), CORE], "core", "queue_wait"),
        case("queue at the nearest", SHORT, [replace(NEAR, **QUEUED), FAR, CORE], "far", "tiny_edge"),
        case("full queues", SHORT, [replace(NEAR, **FULL), CORE], "core", "queue_wait"),
        case("hot processors", SHORT, [replace(NEAR, **HOT), CORE], "core", "cpu"),
        case("80 % is not hot", SHORT, [replace(NEAR, cpu=0.80), CORE], "near", "tiny_edge"),
        case("processors unknown", SHORT, [replace(NEAR, cpu=None), CORE], "near", "tiny_edge"),
        case("not loaded", SHORT, [endpoint("mid", MID), CORE], "core", "not_loaded"),
        case("hint mid", replace(SHORT, hint=Hint.MID), [NEAR, endpoint("mid", MID), CORE], "mid", "tiny_edge"),
        case("nothing loaded", SHORT, [replace(NEAR, variant=None, digest=None), CORE], "core", "not_loaded"),
        case("another file", SHORT, [replace(NEAR, digest="f" * 64), CORE], "core", "not_loaded"),
        case("starting", SHORT, [replace(NEAR, state=State.STARTING), FAR, CORE], "far", "tiny_edge"),
        case("draining", SHORT, [replace(NEAR, state=State.DRAINING), FAR, CORE], "far", "tiny_edge"),
        case("failed", SHORT, [replace(NEAR, state=State.FAILED), CORE], "core", "not_loaded"),
        case("circuit open", SHORT, [replace(NEAR, open=False), FAR, CORE], "far", "tiny_edge"),
        case("tried before", replace(SHORT, excluded=frozenset({"near"})), [NEAR, FAR], "far", "tiny_edge"),
        case("sensitive", replace(SHORT, sensitive=True), [NEAR, CORE], "near", "sensitive"),
        case("sensitive and long", Request(500, sensitive=True), [replace(NEAR, **HOT), CORE], "near", "sensitive"),
        case("core far", SHORT, [replace(NEAR, **HOT), replace(CORE, round_trip_ms=151.0)], "near", "core_far"),
        case("core down", SHORT, [replace(NEAR, **QUEUED)], "near", "core_down"),
        case("degraded", Request(64), [NEAR, replace(CORE, open=False)], "near", "degraded"),
        case("degraded to mid alone", SHORT, [endpoint("mid", MID)], "mid", "core_down"),
        case("mid from tiny", replace(SHORT, hint=Hint.MID), [NEAR], "near", "degraded"),
        case("pinned", replace(SHORT, variant=LARGE), [NEAR, CORE], "core", "pinned"),
        case("family", replace(SHORT, family="lookup"), [NEAR, endpoint("t", TUNED), CORE], "t", "family"),
        case("other family", replace(SHORT, family="total"), [NEAR, endpoint("t", TUNED)], "near", "tiny_edge"),
        case("unknown family", replace(SHORT, family="x"), [NEAR, endpoint("t", TUNED)], "near", "tiny_edge"),
        case("tuned busy", replace(SHORT, family="lookup"), [NEAR, endpoint("t", TUNED, **HOT)], "near", "tiny_edge"),
        case("release before", SHORT, [replace(NEAR, digest=OLD), FAR, CORE], "far", "tiny_edge"),
        case("only the release before", SHORT, [replace(NEAR, digest=OLD), CORE], "near", "tiny_edge"),
        case("deadline beats the edge", replace(SHORT, deadline_ms=300.0),
             [replace(NEAR, token_ms=30.0), replace(CORE, token_ms=1.0)], "core", "deadline"),
        case("idler among near", SHORT, [replace(NEAR, busy=2), endpoint("b", round_trip_ms=4.0)], "b", "tiny_edge"),
        case("core's idlest", Request(99), [replace(CORE, busy=3), endpoint("c2", LARGE)], "c2", "long_prompt"),
    ],
)  # fmt: skip
def test_a_request_goes_where_the_rules_say(
    request_: Request, endpoints: list[Endpoint], expected: str, reason: str
) -> None:
    """Each rule has a case, at its bound and beside it."""
    found = route(request_, fleet(*endpoints), POLICY)
    assert isinstance(found, Decision), found
    assert (found.endpoint, found.reason) == (expected, reason)


@pytest.mark.parametrize(
    ("request_", "endpoints", "denied", "status", "retry"),
    [
        pytest.param(SHORT, [], Denied.NO_ENDPOINT, 503, None, id="no endpoint"),
        pytest.param(replace(SHORT, sensitive=True), [CORE], Denied.NO_EDGE, 503, None, id="sensitive without edge"),
        pytest.param(replace(SHORT, variant=MID), [NEAR], Denied.NO_VARIANT, 503, None, id="variant not served"),
        pytest.param(Request(5000), [NEAR, CORE], Denied.TOO_LONG, 400, None, id="longer than every context"),
        pytest.param(SHORT, [replace(NEAR, **FULL)], Denied.OVERLOADED, 429, 4, id="full"),
        pytest.param(
            replace(SHORT, priority=Priority.BATCH), [replace(CORE, busy=3)], Denied.BATCH_YIELDS, 429, 1, id="batch"
        ),
        pytest.param(replace(SHORT, deadline_ms=5.0), [NEAR, CORE], Denied.DEADLINE, 503, None, id="never in time"),
        pytest.param(
            replace(SHORT, deadline_ms=700.0), [replace(NEAR, busy=4, queued=3)], Denied.DEADLINE, 429, 1, id="not now"
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_early(
    request_: Request, endpoints: list[Endpoint], denied: Denied, status: int, retry: int | None
) -> None:
    """A refusal has a reason, a status, and the seconds to wait where waiting helps."""
    found = route(request_, fleet(*endpoints), POLICY)
    assert found == Declined(denied, retry)
    assert found.status == status


def test_a_smaller_answer_may_be_forbidden() -> None:
    """Where the policy allows no degraded answers, none is given while the NVLink pool is unreachable."""
    strict = POLICY.model_copy(update={"degrade": False})
    assert route(Request(64), fleet(NEAR), strict) == Declined(Denied.CORE_DOWN, 1)
    found = route(Request(64), fleet(NEAR, CORE), strict)
    assert isinstance(found, Decision)
    assert found.alternatives == ()


def test_a_bound_of_the_tokens_refuses_nothing_for_its_length() -> None:
    """Bytes bound a prompt's tokens from above: the server decides whether it fits."""
    assert isinstance(route(Request(5000, counted=Counted.BYTES), fleet(CORE), POLICY), Decision)


def test_requests_of_this_gateway_count_before_the_servers_say_so() -> None:
    """What was sent since a status was read makes an endpoint busy."""
    found = route(SHORT, fleet(NEAR, CORE, in_flight={"near": 9}), POLICY)
    assert isinstance(found, Decision)
    assert found.reason is Reason.QUEUE_WAIT


def test_an_answer_is_continued_by_the_same_file_first() -> None:
    """Of all that may go on with an answer, endpoints with the same digest lead."""
    found = route(SHORT, fleet(NEAR, endpoint("mid", MID), CORE), POLICY)
    assert isinstance(found, Decision)
    assert continuing(found, DIGESTS[LARGE])[0].endpoint == "core"


def test_a_session_stays_where_it_was() -> None:
    """A session's requests go to one node, which changes only when that node leaves; other sessions stay."""
    nodes = [endpoint(f"n{i}") for i in range(5)]
    homes = {key: _home(key, nodes) for key in map(str, range(60))}
    assert len(set(homes.values())) == 5
    left = [n for n in nodes if n.name != "n2"]
    assert {k: _home(k, left) for k, home in homes.items() if home != "n2"} == {
        k: home for k, home in homes.items() if home != "n2"
    }


def _home(key: str, nodes: list[Endpoint]) -> str:
    found = route(replace(SHORT, affinity=key), fleet(*nodes), POLICY)
    assert isinstance(found, Decision)
    assert found.reason is Reason.AFFINITY
    return found.endpoint


def test_a_session_leaves_a_node_with_more_than_its_share() -> None:
    """Bounded loads: a node over 1.25 times the mean passes its sessions on."""
    nodes = [endpoint(f"n{i}") for i in range(4)]
    home = _home("key", nodes)
    loaded = [replace(n, busy=3) if n.name == home else n for n in nodes]
    assert _home("key", loaded) != home


def test_equal_beginnings_have_equal_keys() -> None:
    """The key looks at the beginning alone, and at nothing that could not be encoded."""
    assert affinity.prefix_key("a" * 300) == affinity.prefix_key("a" * 400)
    assert affinity.prefix_key("\ud800") != affinity.prefix_key("b")


def test_a_policy_is_read_from_yaml() -> None:
    """Keys left out keep their defaults; unknown ones and wrong units are refused by name."""
    assert parse_policy("version: 7\nqueue_wait_ms: 50.0\n", "p") == Policy(version=7, queue_wait_ms=50.0)
    for wrong in ("cpu: 80", "queue_wait: 1.0", "tiny_prompt_tokens: '64'"):
        with pytest.raises(CatalogError, match=wrong.partition(":")[0]):
            parse_policy(wrong, "p")


names = st.sampled_from([f"e{i}" for i in range(6)])
variants = st.sampled_from([TINY, MID, LARGE, TUNED])
amounts = st.floats(0, 400, allow_nan=False)
endpoints_ = st.builds(
    endpoint,
    names,
    variants,
    pool=st.sampled_from(Pool),
    state=st.sampled_from([State.READY, State.READY, State.READY, State.DRAINING, State.STARTING]),
    digest=st.sampled_from([*DIGESTS.values(), OLD, None]),
    slots=st.integers(0, 4),
    busy=st.integers(0, 4),
    queued=st.integers(0, 40),
    context=st.sampled_from([0, 128, 4096]),
    cpu=st.none() | st.floats(0, 1),
    round_trip_ms=amounts,
    service_ms=st.none() | amounts,
    token_ms=st.none() | amounts,
    open=st.booleans(),
)
fleets = st.builds(
    lambda found, flights: fleet(*{e.name: e for e in found}.values(), in_flight=flights),
    st.lists(endpoints_, max_size=6),
    st.dictionaries(names, st.integers(0, 40)),
)
requests = st.builds(
    Request,
    st.integers(0, 5000),
    max_tokens=st.none() | st.integers(1, 600),
    hint=st.sampled_from(Hint),
    family=st.none() | st.sampled_from(["lookup", "total", "other"]),
    sensitive=st.booleans(),
    priority=st.sampled_from(Priority),
    deadline_ms=st.none() | st.floats(1, 1e5),
    affinity=st.none() | st.text(max_size=3),
    variant=st.none() | variants,
    excluded=st.frozensets(names, max_size=2),
    counted=st.sampled_from(Counted),
)
policies = st.builds(
    Policy,
    tiny_prompt_tokens=st.integers(1, 300),
    queue_wait_ms=amounts,
    cpu=st.floats(0, 1),
    core_far_ms=amounts,
    near_ms=amounts,
    affinity_load=st.floats(1, 4),
    degrade=st.booleans(),
    alternatives=st.integers(0, 6),
)


@given(requests, fleets, policies)
def test_what_holds_for_every_decision(request: Request, snapshot: Snapshot, policy: Policy) -> None:
    """Only ready, open, untried endpoints with a released file; sensitive stays at the edge; a refusal has a reason."""
    found = route(request, snapshot, policy)
    assert found == route(request, snapshot, policy)
    if isinstance(found, Declined):
        assert found.status in {400, 429, 503}
        assert found.retry_after_s is None or found.retry_after_s >= 1
        return
    by_name = {e.name: e for e in snapshot.endpoints}
    choices = [found.choice, *found.alternatives]
    assert len({c.endpoint for c in choices}) == len(choices) <= 1 + policy.alternatives
    for choice in choices:
        target = by_name[choice.endpoint]
        assert target.state is State.READY
        assert target.open
        assert target.name not in request.excluded
        assert (choice.variant, choice.digest) in snapshot.offered
        assert (target.variant, target.digest, target.pool) == (choice.variant, choice.digest, choice.pool)
        assert not (request.sensitive and choice.pool is not Pool.EDGE)
        assert request.variant in {None, choice.variant}
        assert policy.degrade or not choice.degraded or request.sensitive or choice is found.choice


@given(requests, fleets, policies)
def test_batch_and_long_answers_need_the_core(request: Request, snapshot: Snapshot, policy: Policy) -> None:
    """They reach the edge only marked as degraded, kept there as sensitive, or by the variant they name."""
    found = route(request, snapshot, policy)
    long = request.priority is Priority.BATCH or (request.max_tokens or 0) >= policy.long_generation_tokens
    if isinstance(found, Decision) and long and found.pool is Pool.EDGE:
        assert found.choice.degraded or request.variant is not None
        assert request.sensitive or request.variant or found.reason is Reason.DEGRADED


@given(requests, fleets, policies)
def test_the_order_of_the_endpoints_does_not_matter(request: Request, snapshot: Snapshot, policy: Policy) -> None:
    """Two gateways that know the same decide the same."""
    turned = replace(snapshot, endpoints=snapshot.endpoints[::-1])
    assert route(request, snapshot, policy) == route(request, turned, policy)


@given(fleets, policies)
def test_the_nearest_idle_node_takes_what_fits(snapshot: Snapshot, policy: Policy) -> None:
    """No equally good endpoint is nearer by more than `near_ms` than the one a plain request goes to."""
    found = route(Request(0, max_tokens=1), snapshot, policy)
    if not isinstance(found, Decision) or found.reason is not Reason.TINY_EDGE:
        return
    by_name = {e.name: e for e in snapshot.endpoints}
    chosen = by_name[found.endpoint]
    others = [by_name[c.endpoint] for c in found.alternatives if c.variant == found.variant]
    loads = {e.name: max(e.busy + e.queued, snapshot.in_flight.get(e.name, 0)) for e in others}
    idle = [e for e in others if e.pool is Pool.EDGE and e.digest == chosen.digest and e.slots > loads[e.name]]
    cool = [e for e in idle if (e.cpu or 0) <= policy.cpu]
    assert all(chosen.round_trip_ms <= e.round_trip_ms + policy.near_ms for e in cool)
