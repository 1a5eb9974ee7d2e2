"""The endpoints that may serve a request, each with all that ranks it.

Rules: everything is worked out once for each endpoint; a rank begins with its kind, and lower is better: the channel's
own release, a variant that suits the family, an idle server; then distance, or the wait where it is busy; then load.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.serving import capacity
from pipeline.serving.decision import Request
from pipeline.serving.policy import Policy
from pipeline.serving.snapshot import Endpoint, Offered, Snapshot
from pipeline.serving.status import Pool, State

_POOLS = tuple(Pool)

Kind = tuple[bool, int, bool]


@dataclass(slots=True)
class Option:
    """An endpoint that may serve; `preference` is 0 for a variant tuned to the family, 1 plain, 2 tuned to another."""

    endpoint: Endpoint
    offered: Offered
    pool: Pool
    wait_ms: float
    busy: bool
    preference: int
    kind: Kind
    rank: tuple[Kind, float, float, float, str]


def options(request: Request, snapshot: Snapshot, policy: Policy) -> list[Option]:
    """Return the endpoints that are ready, let requests through, were not tried before and serve a released file."""
    usable = [
        (e, o)
        for e in snapshot.endpoints
        if e.state is State.READY and e.open and e.name not in request.excluded and (o := snapshot.serves(e))
    ]
    nearest = {pool: min((e.round_trip_ms for e, _ in usable if e.pool is pool), default=0.0) for pool in _POOLS}
    return [_option(e, o, nearest[e.pool], request=request, snapshot=snapshot, policy=policy) for e, o in usable]


def _option(
    endpoint: Endpoint, offered: Offered, nearest: float, *, request: Request, snapshot: Snapshot, policy: Policy
) -> Option:
    load = snapshot.load(endpoint)
    wait_ms = capacity.wait_ms(endpoint, load, policy)
    hot = endpoint.pool is Pool.EDGE and (endpoint.cpu or 0.0) > policy.cpu
    busy = hot or wait_ms > policy.queue_wait_ms
    preference = 1 if offered.family is None else _tuned(offered, request.family, snapshot, policy)
    kind = not offered.current, preference, busy
    far = wait_ms if busy else max(endpoint.round_trip_ms - nearest - policy.near_ms, 0.0)
    rank = kind, far, load / capacity.slots(endpoint), endpoint.round_trip_ms, endpoint.name
    return Option(endpoint, offered, endpoint.pool, wait_ms, busy, preference, kind, rank)


def _tuned(offered: Offered, family: str | None, snapshot: Snapshot, policy: Policy) -> int:
    """Return the preference of a tuned variant: it must be tuned to the request's family, and gain by it."""
    plain = snapshot.plain(offered.base)
    if family is None or offered.family != family or plain is None:
        return 2
    own, general = offered.families.get(family), plain.families.get(family)
    gains = own is not None and general is not None and own < policy.family_gain * general
    return 0 if gains else 2
