"""What a node says of itself: its status for gateways, and why it is not what its channel points to."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.peers.status import Pool, Served, ServerStatus, State
from pipeline.serving.node.releases import Held
from pipeline.serving.node.sensors import Reading
from pipeline.serving.node.sizing import Sizing
from pipeline.serving.node.state import COMING, NodeState

CRASHES = 3  # in a row, after which a node says that it failed, though it goes on trying


@dataclass(frozen=True)
class Serving:
    """The server that takes requests: its release, how it was started, and the requests it has."""

    held: Held
    sizing: Sizing
    generating: int = 0


def standing(state: NodeState) -> tuple[State, str | None]:
    """Return what a node does with new requests, and why it is not ready or not up to date."""
    why = _why(state)
    if state.ending:
        return State.DRAINING, "it was asked to end"
    if state.ready is not None:
        return State.READY, None if why is None else f"it stays on release {state.ready.pin.version}: {why}"
    crashes = max((failure.count for failure in state.failures.values()), default=0)
    coming = any(child.phase in COMING for child in state.children)
    if (why is not None and not (coming or state.polling)) or crashes >= CRASHES:
        return State.FAILED, why or _last_failure(state)
    return State.STARTING, why


def status(name: str, pool: Pool, state: NodeState, serving: Serving | None, reading: Reading) -> ServerStatus:
    """Return the node's status.

    Requests are counted where they pass, not asked of llama-server, which answers only between two batches: a gateway
    that chooses wants this moment's number.
    """
    now, reason = standing(state)
    slots = serving.sizing.slots if serving else 0
    generating = serving.generating if serving else 0
    return ServerStatus(
        name=name,
        pool=pool,
        state=now,
        served=served(serving.held) if serving else None,
        slots=slots,
        busy=min(slots, generating),
        queued=max(0, generating - slots),
        context=serving.sizing.context if serving else 0,
        cpu=reading.cpu,
        temperature_c=reading.conditions.temperature_c,
        throttled=list(reading.conditions.throttled_now),
        reason=reason,
    )


def served(held: Held) -> Served:
    """Return what is loaded, as its manifest says."""
    release = held.accepted.manifest.release
    return Served(
        variant=held.entry.name,
        model_sha256=held.model_sha256,
        release_line=release.line,
        release_version=release.version,
        manifest_sha256=held.accepted.digest,
    )


def _why(state: NodeState) -> str | None:
    refused = None
    if state.channel is not None and state.channel.digest in state.refused:
        refused = f"release {state.channel.version} is refused: {state.refused[state.channel.digest]}"
    own = state.refused.get(state.kept.digest) if state.kept and state.kept != state.channel else None
    kept = f"release {state.kept.version} is refused: {own}" if state.kept and own else None
    return "; ".join(filter(None, (refused, kept, state.trouble, state.disk))) or None


def _last_failure(state: NodeState) -> str | None:
    last = max(state.failures.values(), key=lambda failure: failure.at, default=None)
    return last.reason if last else None
