"""Which of several controllers acts: one Lease, as the cluster's own controllers keep theirs.

Rules: who leads renews it well before it ends, and stops to act when it could not; a leader that ends lets go of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import ToolError
from pipeline.ports.lease import Hold

_SAFE = 2 / 3  # of the lease's time, after which a leader that could not renew does nothing more


@dataclass
class Leader:
    """One controller's view of the lease."""

    hold: Hold
    problem: str = ""
    _renewed_at: float | None = field(default=None, init=False)

    @property
    def leads(self) -> bool:
        """Whether this one may act now."""
        return self._renewed_at is not None and self.hold.clock() - self._renewed_at < self.hold.seconds * _SAFE

    def look(self) -> bool:
        """Renew the lease, or take it where it is free; return whether this one leads. Raises nothing."""
        at = self.hold.clock()
        try:
            taken, self.problem = self.hold.take() is None, ""
        except ToolError as e:
            self.problem = e.message
            return self.leads
        self._renewed_at = at if taken else None
        return taken

    def end(self) -> None:
        """Let go of the lease, so that another one need not wait."""
        if not self.leads:
            return
        self._renewed_at = None
        try:
            self.hold.give()
        except ToolError as e:
            self.problem = e.message


class Alone:
    """Where there is no cluster there is no other controller to be told apart from."""

    leads = True
    problem = ""

    def look(self) -> bool:
        """Return that this one leads."""
        return True

    def end(self) -> None:
        """Do nothing."""
