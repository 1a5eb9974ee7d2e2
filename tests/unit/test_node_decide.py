"""What a node decides: a table of situations, and what holds whatever happens in whatever order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.peers.status import State
from pipeline.serving.node import events, report
from pipeline.serving.node.backoff import LONGEST_S, backoff
from pipeline.serving.node.decide import Action, Keep, Kill, Poll, Probe, Retire, Start, Stop, begun, decide, ended
from pipeline.serving.node.events import Event, happened
from pipeline.serving.node.state import ACTIVE, Child, Failure, NodeState, Phase, Pin, Policy

ONE, TWO, THREE = (Pin(version, str(version) * 64) for version in (1, 2, 3))
POLICY = Policy()
ALONE = replace(POLICY, beside=False)
NOW = 1000.0
FRESH = NodeState(asked_at=NOW)  # the channel was just asked


def child(pin: Pin, phase: Phase, number: int = 1, since: float = NOW, in_flight: int = 0) -> Child:
    return Child(number, pin, phase, since, in_flight)


def kept(pin: Pin, *children: Child, **more: object) -> NodeState:
    state = replace(FRESH, kept=pin, stored=pin, children=children, started=len(children))
    return replace(state, **more)  # type: ignore[arg-type]


SERVING = kept(ONE, child(ONE, Phase.READY))
CASES = [
    pytest.param(NodeState(), POLICY, [Poll()], id="nothing is known: ask the channel"),
    pytest.param(FRESH, POLICY, [], id="nothing to serve and just asked: wait"),
    pytest.param(replace(FRESH, polling=True, asked_at=0.0), POLICY, [], id="one look at a time"),
    pytest.param(replace(FRESH, asked_at=NOW - POLICY.poll_s), POLICY, [Poll()], id="time to ask again"),
    pytest.param(kept(ONE), POLICY, [Start(1, ONE)], id="a kept release is started"),
    pytest.param(replace(FRESH, offered=ONE), POLICY, [Start(1, ONE)], id="a first release is started"),
    pytest.param(kept(ONE, child(ONE, Phase.LOADING)), POLICY, [], id="it is loading"),
    pytest.param(kept(ONE, child(ONE, Phase.LOADED)), POLICY, [Probe(1)], id="loaded: ask the golden prompts"),
    pytest.param(kept(ONE, child(ONE, Phase.PROBING)), POLICY, [], id="it is being asked"),
    pytest.param(SERVING, POLICY, [], id="all is well"),
    pytest.param(replace(SERVING, offered=TWO), POLICY, [Start(2, TWO)], id="a new release is started beside"),
    pytest.param(replace(SERVING, offered=TWO), ALONE, [Retire(1)], id="no room for two: the old one drains first"),
    pytest.param(
        kept(ONE, child(ONE, Phase.DRAINING, in_flight=1), offered=TWO), ALONE, [], id="no room yet: requests are left"
    ),
    pytest.param(kept(ONE, offered=TWO), ALONE, [Start(1, TWO)], id="there is room now"),
    pytest.param(kept(ONE, offered=TWO), POLICY, [Start(1, TWO), Start(2, ONE)], id="both, when nothing serves"),
    pytest.param(
        kept(TWO, child(ONE, Phase.DRAINING), child(TWO, Phase.READY, 2)), POLICY, [Stop(1)], id="drained: stop"
    ),
    pytest.param(
        kept(TWO, child(ONE, Phase.DRAINING, in_flight=1), child(TWO, Phase.READY, 2)), POLICY, [], id="still at work"
    ),
    pytest.param(
        kept(TWO, child(ONE, Phase.DRAINING, 1, NOW - POLICY.drain_s, 1), child(TWO, Phase.READY, 2)),
        POLICY,
        [Stop(1)],
        id="at work for too long",
    ),
    pytest.param(
        kept(ONE, child(ONE, Phase.LOADING, since=NOW - POLICY.load_s)),
        POLICY,
        [Stop(1, "it was not done loading after 600 s")],
        id="loading for too long",
    ),
    pytest.param(kept(ONE, child(ONE, Phase.STOPPING, since=NOW - 10)), POLICY, [Kill(1), Start(2, ONE)], id="deaf"),
    pytest.param(
        kept(ONE, child(ONE, Phase.READY), child(TWO, Phase.PROBING, 2)), POLICY, [Stop(2)], id="not on offer any more"
    ),
    pytest.param(kept(ONE, refused={ONE.digest: "wrong"}), POLICY, [], id="refused for good"),
    pytest.param(
        kept(ONE, failures={ONE.digest: Failure(3, NOW - 3.9, "crash")}), POLICY, [], id="after three crashes: wait"
    ),
    pytest.param(
        kept(ONE, failures={ONE.digest: Failure(3, NOW - 4, "crash")}), POLICY, [Start(1, ONE)], id="four seconds over"
    ),
    pytest.param(replace(SERVING, stored=None), POLICY, [Keep(ONE)], id="proven: the disk leads to it"),
    pytest.param(replace(SERVING, stored=None, storing=True), POLICY, [], id="the disk is being changed"),
    pytest.param(replace(SERVING, stored=None, polling=True), POLICY, [], id="not while the disk is read"),
    pytest.param(
        kept(ONE, stored=None, refused={ONE.digest: "it expired"}),
        POLICY,
        [],
        id="refused meanwhile: not onto the disk",
    ),
    pytest.param(replace(SERVING, ending=True), POLICY, [Retire(1)], id="asked to end: drain"),
    pytest.param(kept(ONE, child(ONE, Phase.LOADING), ending=True), POLICY, [Stop(1)], id="asked to end: stop loading"),
    pytest.param(kept(ONE, ending=True, offered=TWO), POLICY, [], id="asked to end: start nothing"),
]


@pytest.mark.parametrize(("state", "policy", "actions"), CASES)
def test_what_is_done(state: NodeState, policy: Policy, actions: list[Action]) -> None:
    """Each situation has its actions, in this order."""
    assert list(decide(state, NOW, policy)) == actions


def after(state: NodeState, *found: Event, policy: Policy = POLICY) -> NodeState:
    for event in found:
        state = happened(state, event, NOW, policy)
    return state


def test_a_release_past_its_time_gets_no_further_requests() -> None:
    """A ready server drains, one that is coming is stopped, and neither is started again; saying it twice is once."""
    serving = after(SERVING, events.Expired(ONE, "it expired"), events.Expired(ONE, "it expired"))
    assert (serving.ready, serving.refusals) == (None, 1)
    assert list(decide(serving, NOW, POLICY)) == [Stop(1)]
    gone = after(serving, events.Exited(1, "ended"))
    assert list(decide(gone, NOW, POLICY)) == []
    assert report.standing(gone) == (State.FAILED, "release 1 is refused: it expired")
    coming = after(kept(ONE, child(ONE, Phase.PROBING)), events.Expired(ONE, "it expired"), events.AnsweredRight(1))
    assert coming.ready is None
    assert list(decide(coming, NOW, POLICY)) == [Stop(1)]


def test_a_right_answer_switches_and_a_wrong_one_refuses() -> None:
    """Right: the new server is ready and the old one drains. Wrong: the old one stays, the release is refused."""
    both = kept(ONE, child(ONE, Phase.READY), child(TWO, Phase.PROBING, 2), offered=TWO, channel=TWO)
    right = after(both, events.AnsweredRight(2))
    assert [c.phase for c in right.children] == [Phase.DRAINING, Phase.READY]
    assert (right.kept, right.offered, right.stored) == (TWO, None, ONE)
    wrong = after(both, events.AnsweredWrong(2, "it says 7"))
    assert [c.phase for c in wrong.children] == [Phase.READY, Phase.FAILED]
    assert (wrong.kept, wrong.offered, wrong.refusals) == (ONE, None, 1)
    assert report.standing(wrong) == (State.READY, "it stays on release 1: release 2 is refused: it says 7")
    assert after(wrong, events.Offered(TWO)).offered is None
    assert after(wrong, events.Offered(THREE)).offered == THREE


def test_an_answer_of_a_release_that_is_not_wanted_any_more_switches_nothing() -> None:
    """The channel moved while a release was being proven: what it answers then is of no interest."""
    both = kept(ONE, child(ONE, Phase.READY), child(TWO, Phase.PROBING, 2), offered=THREE)
    assert after(both, events.AnsweredRight(2)) == both


def test_a_release_that_does_not_start_is_refused_after_some_attempts() -> None:
    """A new release is refused after its last attempt; the kept one never is."""
    state = kept(ONE, child(ONE, Phase.READY), offered=TWO)
    for attempt in range(1, POLICY.attempts + 1):
        assert TWO.digest not in state.refused
        state = replace(state, children=(*state.children, child(TWO, Phase.LOADING, 10 + attempt)))
        state = after(state, events.Exited(10 + attempt, "status 1"))
    assert state.refused[TWO.digest] == "it does not start: status 1"
    assert state.offered is None
    crashing = kept(ONE)
    for number in range(1, 50):
        crashing = replace(crashing, children=(child(ONE, Phase.READY, number),))
        crashing = after(crashing, events.Exited(number, "signal 9"))
    assert (crashing.refused, crashing.restarts) == ({}, 49)
    assert report.standing(crashing) == (State.FAILED, "signal 9")


@pytest.mark.parametrize("how", ["wrong", "no start"])
def test_a_refused_release_is_tried_again_after_a_pause_that_doubles(how: str) -> None:
    """The machine may have been at fault: after 15 minutes, then 30, it gets all its attempts; right ends the doubt."""
    state, now, event = kept(ONE, child(ONE, Phase.READY)), NOW, events.Offered(TWO)
    for pause in (0.0, 900.0, 1800.0):
        if pause:
            assert happened(state, event, now + pause - 1, POLICY).offered is None
        now += pause
        state = happened(state, event, now, POLICY)
        assert state.offered == TWO
        for _ in range(1 if how == "wrong" else POLICY.attempts):
            (start,) = (a for a in decide(state, now + 60, POLICY) if isinstance(a, Start))
            state = begun(state, start, now, POLICY)
            state = state.moved(start.number, Phase.PROBING, now)
            assert TWO.digest not in state.refused
            if how == "wrong":
                state = happened(state, events.AnsweredWrong(start.number, "it says 7"), now, POLICY)
            state = happened(state, events.Exited(start.number, "status 1"), now, POLICY)
        assert TWO.digest in state.refused
    state = happened(state, event, now + 3600, POLICY)
    state = begun(state, Start(99, TWO), now, POLICY).moved(99, Phase.PROBING, now)
    state = happened(state, events.AnsweredRight(99), now, POLICY)
    assert (state.suspects, state.kept) == ({}, TWO)


def test_another_try_takes_nothing_away() -> None:
    """Where two do not fit, a refused release waits until nothing serves."""
    suspect = Failure(1, NOW - 900, "it says 7")
    refused = {"refused": {TWO.digest: "it says 7"}, "suspects": {TWO.digest: suspect}}
    serving, idle = kept(ONE, child(ONE, Phase.READY), **refused), kept(TWO, **refused)
    assert after(serving, events.Offered(TWO), policy=ALONE).offered is None
    assert after(serving, events.Offered(TWO), policy=POLICY).offered == TWO
    assert list(decide(idle, NOW, ALONE)) == [Start(1, TWO)]
    assert list(decide(idle, NOW - 1, ALONE)) == []


def test_an_expired_release_is_never_tried_again() -> None:
    """Whatever was wrong with it before, its time does not come back."""
    wrong = after(kept(ONE, child(ONE, Phase.PROBING)), events.AnsweredWrong(1, "it says 7"))
    gone = after(wrong, events.Expired(ONE, "it expired"), events.Exited(1, "ended"))
    assert wrong.is_refused(ONE, NOW, POLICY)
    assert not wrong.is_refused(ONE, NOW + 900, POLICY)
    assert gone.is_refused(ONE, NOW + 10**6, POLICY)


def test_where_two_do_not_fit_the_old_one_comes_back() -> None:
    """A new release that fails once, where the old one had to end for it, is refused at once."""
    state = kept(ONE, child(TWO, Phase.LOADING), offered=TWO)
    state = after(state, events.Exited(1, "status 1"), policy=ALONE)
    assert list(decide(state, NOW, ALONE)) == [Start(2, ONE)]


def test_a_crash_after_long_service_is_a_first_one() -> None:
    """Failures in a row are counted anew once a server served for a while."""
    failed = {ONE.digest: Failure(7, 0.0, "crash")}
    steady = kept(ONE, child(ONE, Phase.READY, since=NOW - POLICY.steady_s), failures=failed)
    young = kept(ONE, child(ONE, Phase.READY), failures=failed)
    assert after(steady, events.Exited(1, "x")).failures[ONE.digest].count == 1
    assert after(young, events.Exited(1, "x")).failures[ONE.digest].count == 8


@given(st.integers(-3, 10_000))
def test_pauses_double_up_to_the_longest(failures: int) -> None:
    """No pause before the first failure; each is at least the one before, and there is a longest."""
    assert 0 <= backoff(failures) <= backoff(failures + 1) <= LONGEST_S
    assert backoff(0) == 0
    assert backoff(1) == 1.0


PINS = st.sampled_from([ONE, TWO, THREE])


class World:
    """Plays what actions lead to, in an order that the test draws, and checks what must hold at each step."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.state, self.now = policy, NodeState(), 0.0
        self.right: set[int] = set()
        self.wrong: Counter[str] = Counter()
        self.open: list[Event] = []

    def step(self) -> None:
        before = self.state
        asked = decide(self.state, self.now, self.policy)
        for action in asked:
            self.check(action)
            self.state = begun(self.state, action, self.now, self.policy)
            self.follow(action)
        served = before.ready
        if served is not None and self.policy.beside and not before.ending:
            assert served.pin.digest not in self.state.refused
            assert self.state.ready == served, "a ready server is never taken away before another one is ready"
        assert not {*asked} & {*decide(self.state, self.now, self.policy)}, "nothing is asked for twice"

    def check(self, action: Action) -> None:
        if isinstance(action, Start):
            assert not self.state.is_refused(action.pin, self.now, self.policy)
            assert self.state.child(action.number) is None
            assert self.state.of(action.pin) is None, "one server a release"
            assert not self.state.ending
            assert self.policy.beside or not self.state.children
        if isinstance(action, Keep):
            assert action.pin == self.state.kept
            assert action.pin.digest not in self.state.refused
        if isinstance(action, Poll):
            assert not self.state.polling
            assert not self.state.storing

    def follow(self, action: Action) -> None:
        match action:
            case Poll():
                self.open.append(events.NotFollowed("gone"))
            case Start(number, _):
                self.open.append(events.Loaded(number))
            case Probe(number):
                self.open.append(events.AnsweredRight(number))
            case Stop(number, _) | Kill(number):
                self.open.append(events.Exited(number, "ended"))
            case Keep(pin):
                self.open.append(events.Stored(pin))

    def tell(self, event: Event) -> None:
        if isinstance(event, events.AnsweredRight):
            self.right.add(event.number)
        self.state = happened(self.state, event, self.now, self.policy)
        ready = [c for c in self.state.children if c.phase is Phase.READY]
        assert len(ready) <= 1
        assert all(c.number in self.right for c in ready), "only what answered right takes requests"
        active = Counter(c.pin for c in self.state.children if c.phase in ACTIVE)
        assert all(count == 1 for count in active.values())


@settings(max_examples=300)
@given(st.data(), st.booleans())
def test_whatever_happens(data: st.DataObject, beside: bool) -> None:
    """No unproven server takes requests, no refused release is started, and the node comes to rest serving."""
    world = World(replace(POLICY, beside=beside))
    world.tell(events.Found(data.draw(st.none() | PINS)))
    for _ in range(data.draw(st.integers(1, 40))):
        world.step()
        numbers = [c.number for c in world.state.children]
        choices: list[st.SearchStrategy[Event]] = []
        if world.open:
            choices.append(st.sampled_from(world.open))
        if world.state.polling:
            choices.append(st.builds(events.Offered, PINS))
        if numbers:
            choices.append(st.builds(events.Exited, st.sampled_from(numbers), st.just("crash")))
        if numbers:
            pins = [c.pin for c in world.state.children]
            choices.append(st.builds(events.Expired, st.sampled_from(pins), st.just("expired")))
        if probing := [c.number for c in world.state.children if c.phase is Phase.PROBING]:
            choices.append(st.builds(events.AnsweredWrong, st.sampled_from(probing), st.just("wrong")))
        world.now += data.draw(st.sampled_from([0.1, 1.0, 35.0, 700.0]))
        if choices:
            event = data.draw(st.one_of(choices))
            world.open = [e for e in world.open if e != event]
            world.tell(event)
    wanted = world.state.offered or world.state.kept
    for _ in range(60):  # from now on all goes well, and the channel says nothing new
        world.now += 130.0
        world.step()
        for event in world.open:
            world.tell(event)
        world.open = []
    if wanted is not None and wanted.digest not in world.state.refused:
        assert world.state.ready is not None
        assert world.state.kept == world.state.stored
        assert len(world.state.children) == 1
    world.tell(events.EndAsked())
    for _ in range(5):
        world.step()
        for event in world.open:
            world.tell(event)
        world.open = []
    assert ended(world.state)


def test_what_a_release_moved_is_counted_once() -> None:
    """The channel tells of its release at every look; its bytes came once."""
    state = after(NodeState(), events.Offered(ONE, 100, 7))
    state = after(after(state, events.Offered(ONE, 100, 7)), events.Offered(TWO, 3, 104))
    assert (state.fetched, state.reused) == (103, 111)
