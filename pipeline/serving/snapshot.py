"""What is known of the fleet at one moment: endpoints, and the release they may serve.

Rules: plain frozen data; an endpoint counts only with a variant and digest that a verified release names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.catalog.names import Tier, parted
from pipeline.peers.status import Pool, State


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server as last heard of.

    `busy` and `queued` are requests as it says; `context` tokens a slot, 0 where unknown; `cpu` a share;
    `round_trip_ms`, `service_ms` (how long a request holds a slot) and `token_ms` (between two tokens) are measured
    here, None before the first; `open` says that its circuit lets requests through.
    """

    name: str
    url: str
    pool: Pool
    state: State
    variant: str | None = None
    digest: str | None = None
    slots: int = 1
    busy: int = 0
    queued: int = 0
    context: int = 0
    cpu: float | None = None
    round_trip_ms: float = 0.0
    service_ms: float | None = None
    token_ms: float | None = None
    open: bool = True


@dataclass(frozen=True, slots=True)
class Offered:
    """A variant of a verified release; `families` is mean KL in nats by prompt family, `current` whether the release
    is the channel's, or the one before it, whose servers are still on their way.

    `base` is the variant's name without the family it was tuned to, `family` that, if any.
    """

    name: str
    tier: Tier
    digest: str
    context: int
    families: Mapping[str, float] = field(default_factory=dict)
    current: bool = True

    base: str = field(init=False)
    family: str | None = field(init=False)

    def __post_init__(self) -> None:
        base, family = parted(self.name)
        object.__setattr__(self, "base", base)
        object.__setattr__(self, "family", family or None)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that `route` looks at; `offered` by variant and digest, `in_flight` this gateway's requests by endpoint.

    `usable` are the endpoints that are ready, let requests through and serve a released file, which is beside them. An
    endpoint holds what it said, or what was sent to it since, whichever is more.
    """

    endpoints: tuple[Endpoint, ...]
    offered: Mapping[tuple[str, str], Offered]
    in_flight: Mapping[str, int] = field(default_factory=dict)
    usable: tuple[tuple[Endpoint, Offered], ...] = field(init=False)

    def __post_init__(self) -> None:
        ready = [e for e in self.endpoints if e.state is State.READY and e.open]
        object.__setattr__(self, "usable", tuple([(e, o) for e in ready if (o := self.serves(e))]))

    def serves(self, endpoint: Endpoint) -> Offered | None:
        """Return what an endpoint serves of a verified release, or None."""
        if endpoint.variant is None or endpoint.digest is None:
            return None
        return self.offered.get((endpoint.variant, endpoint.digest))

    def context(self, endpoint: Endpoint) -> int:
        """Return the tokens that a slot of an endpoint holds, as it or else the release says; 0 where neither does."""
        offered = self.serves(endpoint)
        return endpoint.context or (offered.context if offered else 0)

    def plain(self, base: str) -> Offered | None:
        """Return the untuned variant of a name, the channel's own before an older one."""
        found = [o for (name, _), o in self.offered.items() if name == base]
        return max(found, key=lambda o: o.current, default=None)
