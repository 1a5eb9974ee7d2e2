"""One request at one endpoint, as far as that is seen from beside the data plane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.serving.gateway.member import Member


@dataclass
class Visit:
    """`began` is in seconds; `queued` says that it may have to wait there; `settled` that its outcome is known."""

    member: Member
    clock: Callable[[], float]
    began: float
    queued: bool
    settled: bool = False

    @classmethod
    def begin(cls, member: Member, clock: Callable[[], float]) -> Visit:
        """Take note of a request that goes to an endpoint."""
        now, queued = clock(), member.is_full
        member.began(now)
        return cls(member, clock, now, queued)

    def worked(self) -> None:
        """Take note of an answer that began."""
        self.settled = True
        self.member.worked()

    def failed(self) -> None:
        """Take note of a failure of the endpoint's own."""
        self.settled = True
        self.member.failed(self.clock())

    def end(self, *, answered: bool = False) -> None:
        """Take note of its end; only an answer says how long one takes."""
        self.member.ended()
        if not self.settled:
            self.member.released()
        if answered:
            self.member.took((self.clock() - self.began) * 1000, 0, queued=self.queued)
