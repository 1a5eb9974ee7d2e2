"""What happens to a node, and the state after it.

Rules: pure; an event of a server that is gone changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.serving.node.state import ACTIVE, Child, Failure, NodeState, Phase, Pin, Policy


@dataclass(frozen=True)
class Found:
    """The disk holds a release that was kept before and was verified again, or none, and why."""

    pin: Pin | None
    reason: str | None = None


@dataclass(frozen=True)
class Offered:
    """The channel points to this release; it is on the disk, verified.

    `fetched` and `reused` are the bytes that came from the registry for it, and those that were on the disk already.
    """

    pin: Pin
    fetched: int = 0
    reused: int = 0


@dataclass(frozen=True)
class NotFollowed:
    """The channel could not be read, or what it points to was refused."""

    reason: str
    refused: bool = False


@dataclass(frozen=True)
class Loaded:
    """A server answers that it is healthy."""

    number: int


@dataclass(frozen=True)
class AnsweredRight:
    """A server gave the golden answers."""

    number: int


@dataclass(frozen=True)
class AnsweredWrong:
    """A server gave other answers than the manifest's evidence."""

    number: int
    reason: str


@dataclass(frozen=True)
class Exited:
    """A server is gone."""

    number: int
    reason: str


@dataclass(frozen=True)
class Stored:
    """The disk leads to this release now."""

    pin: Pin


@dataclass(frozen=True)
class NotStored:
    """The disk could not be changed."""

    reason: str


@dataclass(frozen=True)
class Expired:
    """A release is past the time until which its signer allows it."""

    pin: Pin
    reason: str


@dataclass(frozen=True)
class EndAsked:
    """Somebody wants the node to end."""


Event = (
    Found
    | Offered
    | NotFollowed
    | Loaded
    | AnsweredRight
    | AnsweredWrong
    | Exited
    | Stored
    | NotStored
    | Expired
    | EndAsked
)


def happened(state: NodeState, event: Event, now: float, policy: Policy) -> NodeState:  # noqa: PLR0911 - a table
    """Return the state after an event."""
    match event:
        case Found(kept, why):
            return replace(state, kept=kept, stored=kept, disk=why)
        case Offered(pin):
            return _offered(_moved(state, event), pin, now, policy)
        case NotFollowed(reason, refused):
            again = reason == state.trouble
            return replace(state, polling=False, trouble=reason, refusals=state.refusals + (refused and not again))
        case Loaded(number):
            return _of(state, number, lambda child: _loaded(state, child, now))
        case AnsweredRight(number):
            return _of(state, number, lambda child: _right(state, child, now))
        case AnsweredWrong(number, reason):
            return _of(state, number, lambda child: _wrong(state, child, reason, now))
        case Exited(number, reason):
            return _of(state, number, lambda child: _exited(state, child, reason, now, policy))
        case Stored(pin):
            return replace(state, stored=pin, storing=False, disk=None)
        case NotStored(reason):
            return replace(state, storing=False, disk=reason)
        case Expired(pin, reason):
            return _expired(state, pin, reason, now)
        case EndAsked():
            return replace(state, ending=True)


def failed(state: NodeState, child: Child, reason: str, now: float, policy: Policy) -> NodeState:
    """Return the state after a release's server ended by itself, or had to be stopped before it was ready."""
    before = state.failures.get(child.pin.digest)
    steady = child.phase is Phase.READY and now - child.since >= policy.steady_s
    count = 1 if before is None or steady else before.count + 1
    state = replace(state, failures={**state.failures, child.pin.digest: Failure(count, now, reason)})
    attempts = policy.attempts if policy.beside else 1
    if child.pin == state.offered and count >= attempts:
        return suspect(state, child.pin, f"it does not start: {reason}", now)
    return state


def suspect(state: NodeState, pin: Pin, reason: str, now: float) -> NodeState:
    """Return the state in which a release is started again after a long pause: this machine may be at fault."""
    before = state.suspects.get(pin.digest)
    again = Failure(before.count + 1 if before else 1, now, reason)
    return replace(_refuse(state, pin, reason), suspects={**state.suspects, pin.digest: again})


def _refuse(state: NodeState, pin: Pin, reason: str) -> NodeState:
    offered = None if state.offered == pin else state.offered
    return replace(state, offered=offered, refused={**state.refused, pin.digest: reason}, refusals=state.refusals + 1)


def _of(state: NodeState, number: int, change: Callable[[Child], NodeState]) -> NodeState:
    child = state.child(number)
    return state if child is None else change(child)


def _moved(state: NodeState, event: Offered) -> NodeState:
    seen = replace(state, polling=False, channel=event.pin, trouble=None)
    if event.pin == state.channel:  # told of again at each look
        return seen
    return replace(seen, fetched=state.fetched + event.fetched, reused=state.reused + event.reused)


def _offered(state: NodeState, pin: Pin, now: float, policy: Policy) -> NodeState:
    new = pin != state.kept and not state.is_refused(pin, now, policy)
    return replace(state, offered=pin if new else None)


def _loaded(state: NodeState, child: Child, now: float) -> NodeState:
    return state.moved(child.number, Phase.LOADED, now) if child.phase is Phase.LOADING else state


def _right(state: NodeState, child: Child, now: float) -> NodeState:
    wanted = child.pin in {state.kept, state.offered} and child.pin.digest not in state.refused
    if child.phase is not Phase.PROBING or not wanted:
        return state
    for other in state.children:
        if other.phase is Phase.READY:
            state = state.moved(other.number, Phase.DRAINING, now)
    offered = None if state.offered == child.pin else state.offered
    state = state.cleared(child.pin)
    return replace(state.moved(child.number, Phase.READY, now), kept=child.pin, offered=offered)


def _expired(state: NodeState, pin: Pin, reason: str, now: float) -> NodeState:
    if pin.digest in state.refused and pin.digest not in state.suspects:
        return state
    state = state.cleared(pin)
    ready = state.ready
    if ready is not None and ready.pin == pin:
        state = state.moved(ready.number, Phase.DRAINING, now)
    return _refuse(state, pin, reason)


def _wrong(state: NodeState, child: Child, reason: str, now: float) -> NodeState:
    if child.phase is not Phase.PROBING:
        return state
    return suspect(state.moved(child.number, Phase.FAILED, now), child.pin, reason, now)


def _exited(state: NodeState, child: Child, reason: str, now: float, policy: Policy) -> NodeState:
    state = replace(state, children=tuple(c for c in state.children if c.number != child.number))
    if child.phase is Phase.READY:
        state = replace(state, restarts=state.restarts + 1)
    return failed(state, child, reason, now, policy) if child.phase in ACTIVE else state
