"""What a node does next: a pure function of what it knows and the time.

Rules, each of which a test states:
- requests go to a server that gave the golden answers, and to no other;
- a new release is started beside the old one, which serves until the new one gave the golden answers, then drains;
- where two do not fit, the old one drains first, and comes back if the new one fails;
- a release that answers wrong, or does not start in a few attempts, is refused, and tried again after a long pause
  where that takes away none that serves;
- a release past its time gets no further requests, and is not tried again;
- a server that ends by itself is started again, after a pause that doubles;
- the disk leads to a release only after it answered right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.serving.node.backoff import backoff
from pipeline.serving.node.events import failed
from pipeline.serving.node.state import Child, NodeState, Phase, Pin, Policy


@dataclass(frozen=True)
class Poll:
    """Look where the channel points, and bring that release onto the disk."""


@dataclass(frozen=True)
class Start:
    """Verify a release on the disk again and start its server."""

    number: int
    pin: Pin


@dataclass(frozen=True)
class Probe:
    """Ask a server the golden prompts."""

    number: int


@dataclass(frozen=True)
class Retire:
    """Give a server no further requests."""

    number: int


@dataclass(frozen=True)
class Stop:
    """Ask a server to end; `failure` says what it failed at, where it did."""

    number: int
    failure: str | None = None


@dataclass(frozen=True)
class Kill:
    """End a server that did not end when it was asked to."""

    number: int


@dataclass(frozen=True)
class Keep:
    """Let the disk lead to a release."""

    pin: Pin


Action = Poll | Start | Probe | Retire | Stop | Kill | Keep


def decide(state: NodeState, now: float, policy: Policy) -> tuple[Action, ...]:
    """Return what to do now; nothing where nothing is to be done."""
    servers = [action for child in state.children for action in _server(state, child, now, policy)]
    if state.ending:
        return tuple(servers)
    disk = [*_keep(state), *_poll(state, now, policy)][:1]  # one thing at a time
    return (*servers, *_start(state, now, policy), *disk)


def begun(state: NodeState, action: Action, now: float, policy: Policy) -> NodeState:  # noqa: PLR0911 - a table
    """Return the state once an action is under way."""
    match action:
        case Poll():
            return replace(state, polling=True, asked_at=now)
        case Keep():
            return replace(state, storing=True)
        case Start(number, pin):
            child = Child(number, pin, Phase.LOADING, now)
            return replace(state.pardoned(pin), children=(*state.children, child), started=number)
        case Probe(number):
            return state.moved(number, Phase.PROBING, now)
        case Retire(number):
            return state.moved(number, Phase.DRAINING, now)
        case Kill(number):
            return state.moved(number, Phase.STOPPING, now)
        case Stop(number, failure):
            child_ = state.child(number)
            if failure is not None and child_ is not None:
                state = failed(state, child_, failure, now, policy)
            return state.moved(number, Phase.STOPPING, now)


def ended(state: NodeState) -> bool:
    """Return whether a node that was asked to end may do so."""
    return state.ending and not state.children


def _server(state: NodeState, child: Child, now: float, policy: Policy) -> Iterator[Action]:
    waited = now - child.since
    match child.phase:
        case Phase.STOPPING:
            if waited >= policy.kill_s:
                yield Kill(child.number)
        case Phase.FAILED:
            yield Stop(child.number)
        case Phase.DRAINING:
            if not child.in_flight or waited >= policy.drain_s:
                yield Stop(child.number)
        case Phase.READY:
            if state.ending or _makes_room(state, child, now, policy):
                yield Retire(child.number)
        case _:
            yield from _coming(state, child, waited, policy)


def _coming(state: NodeState, child: Child, waited: float, policy: Policy) -> Iterator[Action]:
    patience = policy.probe_s if child.phase is Phase.PROBING else policy.load_s
    if state.ending or child.pin not in {state.kept, state.offered} or child.pin.digest in state.refused:
        yield Stop(child.number)
    elif waited >= patience:
        yield Stop(child.number, f"it was not done {child.phase} after {patience:.0f} s")
    elif child.phase is Phase.LOADED:
        yield Probe(child.number)


def _makes_room(state: NodeState, ready: Child, now: float, policy: Policy) -> bool:
    new = state.offered
    return not policy.beside and new is not None and ready.pin != new and _may_start(state, new, now, policy)


def _keep(state: NodeState) -> Iterator[Action]:
    pin = state.kept
    if pin is None or pin == state.stored or pin.digest in state.refused or state.storing or state.polling:
        return
    yield Keep(pin)


def _start(state: NodeState, now: float, policy: Policy) -> Iterator[Action]:
    number = state.started
    for pin in _wanted(state, policy):
        if state.of(pin) is None and _may_start(state, pin, now, policy) and (policy.beside or not state.children):
            number += 1
            yield Start(number, pin)
            if not policy.beside:
                return


def _wanted(state: NodeState, policy: Policy) -> Iterator[Pin]:
    if state.offered is not None:
        yield state.offered
        if not policy.beside:
            return
    if state.kept is not None and state.ready is None and state.kept != state.offered:
        yield state.kept


def _may_start(state: NodeState, pin: Pin, now: float, policy: Policy) -> bool:
    failure = state.failures.get(pin.digest)
    rested = failure is None or now - failure.at >= backoff(failure.count)
    return rested and not state.is_refused(pin, now, policy)


def _poll(state: NodeState, now: float, policy: Policy) -> Iterator[Action]:
    due = state.asked_at is None or now - state.asked_at >= policy.poll_s
    if due and not (state.polling or state.storing):
        yield Poll()
