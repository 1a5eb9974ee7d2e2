"""A circuit breaker: whether an endpoint is asked again after it failed.

Rules: pure, time in seconds is an argument; some failures in a row open it; after a pause that doubles with every
failed probe it lets one request through, whose outcome closes it or opens it again; the failure of a request that began
before it opened says nothing new.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

_DOUBLINGS = 64  # beyond any pause; powers of two leave the range of floats at 1024


class Circuit(StrEnum):
    """What a breaker does with requests."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Breaker:
    """`failures` in a row; `until` is when the next probe may start, None while closed; `probing` is one under way.

    `limit` failures open it, `pause_s` is the first pause, `longest_s` the longest.
    """

    limit: int = 3
    pause_s: float = 1.0
    longest_s: float = 30.0
    failures: int = 0
    until: float | None = None
    probing: bool = False

    def circuit(self, now: float) -> Circuit:
        """Return what it does at a time."""
        if self.until is None:
            return Circuit.CLOSED
        return Circuit.HALF_OPEN if now >= self.until and not self.probing else Circuit.OPEN

    def began(self, now: float) -> Breaker:
        """Return it after a request was let through."""
        return replace(self, probing=True) if self.circuit(now) is Circuit.HALF_OPEN else self

    def succeeded(self) -> Breaker:
        """Return it after an answer began."""
        return replace(self, failures=0, until=None, probing=False)

    def released(self) -> Breaker:
        """Return it after a request ended that says nothing of the endpoint: the client left, another was faster."""
        return replace(self, probing=False)

    def failed(self, now: float) -> Breaker:
        """Return it after a failure."""
        if self.until is not None and not self.probing:
            return self
        failures = self.failures + 1
        if failures < self.limit:
            return replace(self, failures=failures, probing=False)
        pause = min(self.pause_s * 2 ** min(failures - self.limit, _DOUBLINGS), self.longest_s)
        return replace(self, failures=failures, until=now + pause, probing=False)
