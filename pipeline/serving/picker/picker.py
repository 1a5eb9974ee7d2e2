"""The endpoint picker as a whole: a watcher whose decisions go out as addresses.

Rules: the gateway's `route` decides; an endpoint without an address, or outside what the data plane confines a request
to, counts as not there. One body goes to whichever endpoint answers, so it names no model: a server has one, and names
it in its answer. An endpoint without a fallback is named twice, for a kept connection may end just when it is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipeline.serving.decision import Choice, Decision
from pipeline.serving.gateway import payload, problems
from pipeline.serving.gateway.ask import PATHS, Kind, parse
from pipeline.serving.gateway.callers import KeyEntry
from pipeline.serving.gateway.journal import Line
from pipeline.serving.gateway.problems import Problem
from pipeline.serving.gateway.question import classed, question
from pipeline.serving.gateway.watcher import Watcher
from pipeline.serving.picker import messages
from pipeline.serving.picker.addresses import Addresses
from pipeline.serving.routing import route

_TARGETS: dict[tuple[bytes, bytes], Kind | None] = {
    (b"GET", b"/v1/models"): None,
    **{(b"POST", path.encode()): kind for path, kind in PATHS.items() if kind is not Kind.GENERATE},
}
_TIMEOUT = "x-envoy-upstream-rq-timeout-ms"


@dataclass(frozen=True, slots=True)
class Pick:
    """Where one request goes: a decision's choices in their order, their addresses, and what goes there.

    `named` are the request's headers that say so to the data plane.
    """

    decision: Decision
    choices: tuple[Choice, ...]
    addresses: tuple[str, ...]
    named: Mapping[str, str]
    body: bytes

    def place(self, address: str | None) -> int:
        """Return the place of an address among the choices, the first where it is none of theirs."""
        return self.addresses.index(address) if address in self.addresses else 0


@dataclass
class Picker(Watcher):
    """One running picker."""

    addresses: Addresses = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.addresses = Addresses(self.parts.settings.endpoints)
        flights = self.fleet.flights
        self.metrics.gauges("gateway_in_flight", "Requests at work.", [], lambda: [({}, float(sum(flights.values())))])

    @property
    def can_decide(self) -> bool:
        """Whether it should be asked: it refuses in its own words what no endpoint can answer now."""
        return not self.draining and self.counts and bool(self.fleet.offers)

    async def start(self) -> None:
        """Look at the release, the endpoints and where they are, and go on looking."""
        await super().start()
        self._tasks.append(asyncio.create_task(self.addresses.watch()))

    def kind(self, headers: Mapping[bytes, bytes]) -> Kind | None:
        """Return the interface of a completion, None for the list of models; raises Problem where it is neither."""
        target = headers.get(b":method", b""), headers.get(b":path", b"").partition(b"?")[0]
        if target not in _TARGETS:
            known = ", ".join(f"{m.decode()} {path.decode()}" for m, path in _TARGETS)
            raise Problem(404, "not_found", f"there is {known}")
        return _TARGETS[target]

    async def pick(
        self,
        line: Line,
        headers: Mapping[bytes, bytes],
        body: bytes,
        *,
        entry: KeyEntry | None,
        subset: frozenset[str] | None,
        began: float,
    ) -> Pick:
        """Return where a request goes that began at a time in seconds; raises Problem where it is refused."""
        ask = classed(parse(Kind(line.kind), body, headers), entry)
        line.stream = ask.stream
        request = await question(ask, self.counter, self.fleet)
        line.prompt_tokens, line.counted = request.prompt_tokens, request.counted
        self.metrics.prompt_tokens(request.counted).observe(request.prompt_tokens)
        asked = replace(request, excluded=self._out_of_reach(subset))
        found = route(asked, self.fleet.snapshot(), self.fleet.policy)
        if not isinstance(found, Decision):
            raise problems.declined(found)
        choices = self._choices(found)
        addresses = tuple(self.addresses.found[c.endpoint] for c in choices)
        named = {messages.DESTINATION: ",".join(addresses)}
        if ask.deadline_ms is not None:
            left_ms = ask.deadline_ms - (self.parts.clock() - began) * 1000
            named[_TIMEOUT] = str(max(round(left_ms), 1))
        return Pick(found, choices, addresses, named, payload.anywhere(ask))

    def _out_of_reach(self, subset: frozenset[str] | None) -> frozenset[str]:
        found = self.addresses.found
        allowed = (n for n, address in found.items() if subset is None or address in subset)
        return frozenset(self.fleet.members).difference(allowed)

    def _choices(self, decision: Decision) -> tuple[Choice, ...]:
        named = (decision.choice, *decision.alternatives)[: self.parts.settings.effort.attempts]
        return named if len(named) > 1 else named * 2
