"""What a node knows: its servers, the release that is kept, the one on offer, and what went wrong.

Rules: frozen; a release is named by its manifest's digest; one server takes requests, the one that is ready.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

from pipeline.serving.node.backoff import backoff

T = TypeVar("T")


@dataclass(frozen=True)
class Pin:
    """A release: its version, and the digest of its manifest."""

    version: int
    digest: str


class Phase(StrEnum):
    """A server's life, in this order; FAILED gave wrong answers and is to be stopped."""

    LOADING = "loading"
    LOADED = "loaded"
    PROBING = "probing"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    STOPPING = "stopping"


COMING = frozenset({Phase.LOADING, Phase.LOADED, Phase.PROBING})
ACTIVE = COMING | {Phase.READY}


@dataclass(frozen=True)
class Child:
    """One llama-server; `since` when it entered its phase (seconds of a clock that only rises)."""

    number: int
    pin: Pin
    phase: Phase
    since: float
    in_flight: int = 0


@dataclass(frozen=True)
class Failure:
    """How often in a row a release's server ended by itself, or the release was refused; when last, and why."""

    count: int
    at: float
    reason: str


@dataclass(frozen=True)
class NodeState:
    """Everything that is decided by.

    `kept` answered right, or was kept before this process began; `stored` is the one the disk leads to. `offered` is
    on the disk and not proven yet; `channel` is what the channel was last seen to point to. `refused` says why, by
    digest, and `suspects` holds those of them that this machine may be at fault for; `trouble` says why the channel
    could not be followed, `disk` what is wrong with the disk. `started` counts servers, `restarts` those that ended
    while they were ready, `refusals` the releases refused; `fetched` and `reused` are the bytes of releases that came
    from the registry, and those that were on the disk already.
    """

    kept: Pin | None = None
    stored: Pin | None = None
    offered: Pin | None = None
    channel: Pin | None = None
    children: tuple[Child, ...] = ()
    failures: Mapping[str, Failure] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    suspects: Mapping[str, Failure] = field(default_factory=dict)
    trouble: str | None = None
    disk: str | None = None
    polling: bool = False
    storing: bool = False
    asked_at: float | None = None
    ending: bool = False
    started: int = 0
    restarts: int = 0
    refusals: int = 0
    fetched: int = 0
    reused: int = 0

    @property
    def ready(self) -> Child | None:
        """The server that takes requests."""
        return next((child for child in self.children if child.phase is Phase.READY), None)

    def child(self, number: int) -> Child | None:
        """Return a server by its number, or None where it is gone."""
        return next((child for child in self.children if child.number == number), None)

    def of(self, pin: Pin) -> Child | None:
        """Return the release's server that is coming or ready."""
        return next((child for child in self.children if child.pin == pin and child.phase in ACTIVE), None)

    def is_refused(self, pin: Pin, now: float, policy: Policy) -> bool:
        """Return whether a release may not be started now."""
        suspect = self.suspects.get(pin.digest)
        if pin.digest not in self.refused or suspect is None:
            return pin.digest in self.refused
        pause = backoff(suspect.count, base_s=policy.retry_s, longest_s=policy.retry_longest_s)
        return now - suspect.at < pause or not (policy.beside or self.ready is None)

    def pardoned(self, pin: Pin) -> NodeState:
        """Return the state in which a release gets all its attempts again, if it was refused."""
        if pin.digest not in self.refused:
            return self
        return replace(self, refused=_without(self.refused, pin), failures=_without(self.failures, pin))

    def cleared(self, pin: Pin) -> NodeState:
        """Return the state in which nothing is known against a release that may have been this machine's fault."""
        return replace(self, suspects=_without(self.suspects, pin))

    def moved(self, number: int, phase: Phase, now: float) -> NodeState:
        """Return the state with one server in another phase."""
        moved = [replace(c, phase=phase, since=now) if c.number == number else c for c in self.children]
        return replace(self, children=tuple(moved))

    def loaded_with(self, in_flight: Mapping[int, int]) -> NodeState:
        """Return the state with how many requests each server works on, by its number."""
        return replace(self, children=tuple(replace(c, in_flight=in_flight.get(c.number, 0)) for c in self.children))


def _without(known: Mapping[str, T], pin: Pin) -> Mapping[str, T]:
    return {digest: value for digest, value in known.items() if digest != pin.digest}


@dataclass(frozen=True)
class Policy:
    """How patient a node is, in seconds.

    `load_s` for a model to load, `probe_s` to answer the golden prompts, `drain_s` for requests of an old server,
    `kill_s` between asking a server to end and killing it, `steady_s` after which a crash is a first one again.
    `attempts` are starts of a new release before it is refused; it is tried again after `retry_s`, doubled each time
    up to `retry_longest_s`: a board may have been hot, or its memory short. `beside`: two servers fit at once.
    """

    poll_s: float = 30.0
    load_s: float = 600.0
    probe_s: float = 600.0
    drain_s: float = 120.0
    kill_s: float = 10.0
    steady_s: float = 60.0
    attempts: int = 3
    retry_s: float = 900.0
    retry_longest_s: float = 14400.0
    beside: bool = True
