"""All endpoints together: their states are asked for, and routing gets a snapshot of them.

Rules: the snapshot is made anew only after something changed, and at every look; a state is read within bounds and
time, whatever answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.errors import TrustError
from pipeline.manifest.encoding import decode
from pipeline.serving.gateway.member import Member
from pipeline.serving.gateway.offers import Offers
from pipeline.serving.gateway.settings import Settings
from pipeline.serving.gateway.upstream import Client, UpstreamError
from pipeline.serving.snapshot import Endpoint, Snapshot
from pipeline.serving.status import ServerStatus

MAX_STATUS = 64 << 10  # bytes


@dataclass
class Fleet:
    """The endpoints of the settings and what a verified release lets them serve."""

    members: dict[str, Member]
    clock: Callable[[], float]
    flights: Mapping[str, int]
    offers: Offers = field(default_factory=dict)
    _snapshot: Snapshot | None = None

    @classmethod
    def of(cls, settings: Settings, clock: Callable[[], float]) -> Fleet:
        """Return the fleet of some settings, none of it heard of yet."""
        flights: dict[str, int] = {}
        return cls({e.name: Member.of(e, settings.effort, flights) for e in settings.endpoints}, clock, flights)

    def offer(self, offers: Offers) -> None:
        """Take what may be served from now on."""
        self.offers, self._snapshot = offers, None

    def snapshot(self) -> Snapshot:
        """Return the fleet as routing sees it."""
        if self._snapshot is None or any(m.changed for m in self.members.values()):
            self._snapshot = Snapshot(self._endpoints(), self.offers, self.flights)
        return self._snapshot

    def _endpoints(self) -> tuple[Endpoint, ...]:
        now = self.clock()
        for member in self.members.values():
            member.changed = False
        return tuple(member.endpoint(now) for member in self.members.values())

    async def watch(self, client: Client, every_s: float) -> None:
        """Ask every endpoint for its state, for ever."""
        await asyncio.gather(*(self._watch(m, client, every_s) for m in self.members.values()))

    async def _watch(self, member: Member, client: Client, every_s: float) -> None:
        while True:
            await look(member, client, self.clock)
            await asyncio.sleep(every_s)


async def look(member: Member, client: Client, clock: Callable[[], float]) -> None:
    """Ask one endpoint for its state."""
    began = clock()
    try:
        data = await client.get(member.entry.status_url, MAX_STATUS)
        member.heard(decode(data, ServerStatus, "status"), (clock() - began) * 1000)
    except UpstreamError as e:
        member.silent(str(e))
    except TrustError as e:
        member.silent(e.message)
