"""The endpoints that may serve a request, each with all that ranks it.

Rules: everything is worked out once for each endpoint; a rank begins with its kind, and lower is better: the channel's
own release, a variant that suits the family, an idle server; then distance, or the wait where it is busy; then load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.peers.policy import Policy
from pipeline.peers.status import Pool
from pipeline.serving import capacity
from pipeline.serving.decision import Request
from pipeline.serving.snapshot import Endpoint, Offered, Snapshot

Kind = tuple[bool, int, bool]

_EDGE = Pool.EDGE


@dataclass(slots=True, eq=False)
class Option:
    """An endpoint that may serve, with the requests it holds.

    `room` says that its queue takes one more; `preference` is 0 for a variant tuned to the family, 1 for a plain one, 2
    for one tuned to another.
    """

    endpoint: Endpoint
    offered: Offered
    pool: Pool
    slots: int
    load: int
    wait_ms: float
    room: bool
    busy: bool
    preference: int
    kind: Kind
    rank: tuple[Kind, float, float, float, str]


def options(request: Request, snapshot: Snapshot, policy: Policy) -> list[Option]:
    """Return the endpoints that are ready, let requests through, were not tried before and serve a released file."""
    usable: Sequence[tuple[Endpoint, Offered]] = snapshot.usable
    if request.excluded:
        usable = [u for u in usable if u[0].name not in request.excluded]
    edge = min([e.round_trip_ms for e, _ in usable if e.pool is _EDGE], default=0.0)
    core = min([e.round_trip_ms for e, _ in usable if e.pool is not _EDGE], default=0.0)
    sent, deep, hottest, longest = snapshot.in_flight, 1 + policy.queue_depth, policy.cpu, policy.queue_wait_ms
    edge, core = edge + policy.near_ms, core + policy.near_ms
    found = []
    for endpoint, offered in usable:  # the hottest loop there is
        name, pool, slots, trip_ms = endpoint.name, endpoint.pool, endpoint.slots or 1, endpoint.round_trip_ms
        said, own = endpoint.busy + endpoint.queued, sent.get(name, 0)
        load = max(said, own)  # what it said, or was sent since
        wait_ms = capacity.wait_ms(endpoint, load, policy) if load >= slots else 0.0
        at_edge = pool is _EDGE
        busy = wait_ms > longest or (at_edge and (endpoint.cpu or 0.0) > hottest)
        preference = 1 if offered.family is None else _tuned(offered, request.family, snapshot, policy)
        kind = not offered.current, preference, busy
        beyond = trip_ms - (edge if at_edge else core)
        rank = kind, wait_ms if busy else beyond if beyond > 0 else 0.0, load / slots, trip_ms, name
        room = load < slots * deep
        found.append(Option(endpoint, offered, pool, slots, load, wait_ms, room, busy, preference, kind, rank))
    return found


def _tuned(offered: Offered, family: str | None, snapshot: Snapshot, policy: Policy) -> int:
    """Return the preference of a tuned variant: it must be tuned to the request's family, and gain by it."""
    plain = snapshot.plain(offered.base)
    if family is None or offered.family != family or plain is None:
        return 2
    own, general = offered.families.get(family), plain.families.get(family)
    gains = own is not None and general is not None and own < policy.family_gain * general
    return 0 if gains else 2
