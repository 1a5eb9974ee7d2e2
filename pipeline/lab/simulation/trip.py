"""One request on its way through the fleet."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from pipeline.serving.decision import Choice, Decision, Reason, Request

if TYPE_CHECKING:
    from pipeline.lab.simulation.door import Door
    from pipeline.lab.simulation.server import Server
    from pipeline.lab.simulation.traffic import Row


class Trip:
    """What is asked and drawn, and how it fares.

    `attempts` endpoints were tried; it was sent at `sent` to `server`, which gives its first token at `first` and ends
    at `due`, infinite while it waits; `begun` is when the client got its first token. It `waits` at the gateway,
    with its `ticket`, no longer than `until`. It has to be `done` at `limit`, and is `bounded` once it is watched for
    that. Times in seconds.
    """

    __slots__ = (
        "answer", "at", "attempts", "begun", "bounded", "choices", "decision", "done", "door", "due", "first", "fresh",
        "instead", "kind", "limit", "luck", "phase", "prompt_id", "queued", "request", "sent", "server", "ticket",
        "until", "waits", "way",
    )  # fmt: skip

    def __init__(self, row: Row, door: Door, request: Request, limit_s: float) -> None:
        """Begin a trip at a gateway."""
        self.at, _, self.kind, self.fresh, self.answer, self.prompt_id, self.luck, self.phase, self.way = row
        self.door, self.request = door, request
        self.attempts = 0
        self.choices: tuple[Choice, ...] = ()
        self.decision: Decision | None = None
        self.instead: Reason | None = None
        self.server: Server | None = None
        self.queued = False
        self.sent = self.at
        self.first = self.due = inf
        self.begun: float | None = None
        self.until: float | None = None
        self.ticket, self.waits = (0, 0), False
        self.limit, self.bounded, self.done = self.at + limit_s, False, False
