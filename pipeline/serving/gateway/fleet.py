"""All endpoints together with the policy in force: their states are asked for, and routing gets a snapshot of them.

Rules: the snapshot is made anew only after something changed, and at every look; a state is read within bounds and
time, whatever answers. What a server says it serves counts after the release that it names was looked for: servers may
follow the channel sooner than whoever watches them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from math import inf

from pipeline.errors import TrustError
from pipeline.manifest.encoding import decode
from pipeline.peers.policy import Policy
from pipeline.peers.status import Served, ServerStatus
from pipeline.serving.gateway.member import Member
from pipeline.serving.gateway.offers import Offers
from pipeline.serving.gateway.settings import Settings
from pipeline.serving.gateway.upstream import Client, UpstreamError
from pipeline.serving.snapshot import Endpoint, Snapshot

Learn = Callable[[Served], Awaitable[None]]

MAX_STATUS = 64 << 10  # bytes


@dataclass
class Fleet:
    """The endpoints of the settings, what a verified release lets them serve, and how they are chosen."""

    members: dict[str, Member]
    clock: Callable[[], float]
    flights: Mapping[str, int]
    policy: Policy = field(default_factory=Policy)
    offers: Offers = field(default_factory=dict)
    _snapshot: Snapshot | None = None
    _context: float = inf

    @classmethod
    def of(cls, settings: Settings, clock: Callable[[], float]) -> Fleet:
        """Return the fleet of some settings, none of it heard of yet."""
        flights: dict[str, int] = {}
        members = {e.name: Member.of(e, settings.effort, flights) for e in settings.endpoints}
        return cls(members, clock, flights, settings.policy)

    def offer(self, offers: Offers) -> None:
        """Take what may be served from now on."""
        self.offers, self._snapshot = offers, None

    def snapshot(self) -> Snapshot:
        """Return the fleet as routing sees it."""
        if self._snapshot is None or any(m.changed for m in self.members.values()):
            self._snapshot = made = Snapshot(self._endpoints(), self.offers, self.flights)
            self._context = min((c for e in made.endpoints if (c := made.context(e))), default=inf)
        return self._snapshot

    def context(self) -> float:
        """Return the least tokens that a slot of a server holds; infinite where none says."""
        self.snapshot()
        return self._context

    def _endpoints(self) -> tuple[Endpoint, ...]:
        now = self.clock()
        for member in self.members.values():
            member.changed = False
        return tuple(member.endpoint(now) for member in self.members.values())

    async def watch(self, client: Client, every_s: float, learn: Learn) -> None:
        """Ask every endpoint for its state, for ever; `learn` hears of what a server serves before that counts."""
        await asyncio.gather(*(self._watch(m, client, every_s, learn) for m in self.members.values()))

    async def _watch(self, member: Member, client: Client, every_s: float, learn: Learn) -> None:
        while True:
            await look(member, client, self.clock, learn)
            await asyncio.sleep(every_s)


async def look(member: Member, client: Client, clock: Callable[[], float], learn: Learn) -> None:
    """Ask one endpoint for its state."""
    began = clock()
    try:
        data = await client.get(member.entry.status_url, MAX_STATUS)
        status, trip_ms = decode(data, ServerStatus, "status"), (clock() - began) * 1000
        if status.served is not None:
            await learn(status.served)
        member.heard(status, trip_ms)
    except UpstreamError as e:
        member.silent(str(e))
    except TrustError as e:
        member.silent(e.message)
