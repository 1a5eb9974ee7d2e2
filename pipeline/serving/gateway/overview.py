"""What `GET /status` tells of a gateway: its release, pools, endpoints, last decisions, and what its promises cost.

Rules: frozen; times are milliseconds or seconds as their names say; nothing of a prompt, an answer, a key or a client
is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pipeline.peers.slo import OBJECTIVES, Objective
from pipeline.peers.status import Pool, State
from pipeline.serving.decision import Counted
from pipeline.serving.gateway.breaker import Circuit
from pipeline.serving.gateway.gateway import Gateway
from pipeline.serving.gateway.journal import Line
from pipeline.serving.gateway.member import Member
from pipeline.serving.gateway.recent import HOUR

MINUTES = 5  # that quantiles, counts and the shorter burn rate are of


@dataclass(frozen=True)
class Release:
    """The release in use; `version` 0 without one; `problem` says why the channel's newest is not in use."""

    line: str
    channel: str
    version: int
    expires: datetime | None
    problem: str | None


@dataclass(frozen=True)
class Server:
    """One endpoint: what it says of itself, and what is seen of it.

    `usable` says that requests may go to it, `drained` that an operator took it out, `heard` that it answered lately,
    so that what it says of itself is current.
    """

    name: str
    usable: bool
    drained: bool
    heard: bool
    state: State
    circuit: Circuit
    variant: str | None
    release: int | None
    round_trip_ms: float
    slots: int
    busy: int
    queued: int
    in_flight: int
    cpu: float | None
    temperature_c: float | None
    throttled: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True)
class Group:
    """One pool, with the time its answers of the last minutes took to begin."""

    pool: Pool
    answers: int
    p50_ms: float | None
    p95_ms: float | None
    endpoints: tuple[Server, ...]


@dataclass(frozen=True)
class Burn:
    """One objective, and how fast its budget was used up in the last minutes and hour; None without requests.

    `asked_5m` requests are what the former is of.
    """

    objective: str
    pool: Pool | None
    share: float
    within_ms: float | None
    asked_5m: int
    burn_5m: float | None
    burn_1h: float | None


@dataclass(frozen=True)
class Tally:
    """How often requests went to a pool for a reason; of refused ones the pool is `none`, the reason the code."""

    pool: str
    reason: str
    count: int


@dataclass(frozen=True)
class Decided:
    """One request: where it went and why, how it ended, and how long its answer took to begin."""

    ago_s: float
    kind: str
    pool: str
    endpoint: str | None
    variant: str | None
    reason: str
    outcome: str
    degraded: bool
    begun_ms: float


@dataclass(frozen=True)
class Overview:
    """The whole document."""

    schema_version: Literal[1]
    ready: bool
    problems: tuple[str, ...]
    release: Release
    policy_version: int
    prompts_counted_by: Counted
    in_flight: int
    waiting: int
    minutes: int
    pools: tuple[Group, ...]
    objectives: tuple[Burn, ...]
    reasons: tuple[Tally, ...]
    decisions: tuple[Decided, ...]


def overview(gateway: Gateway) -> Overview:
    """Return what is to be told of a gateway now."""
    proxy, now, problems = gateway.proxy, gateway.parts.clock(), gateway.problems()
    found = servers(gateway, now)
    return Overview(
        schema_version=1,
        ready=not problems,
        problems=tuple(problems),
        release=_release(gateway),
        policy_version=gateway.fleet.policy.version,
        prompts_counted_by=proxy.counter.counted,
        in_flight=proxy.in_flight,
        waiting=len(proxy.waiting),
        minutes=MINUTES,
        pools=tuple(_group(gateway, pool, now, found) for pool in Pool),
        objectives=tuple(_burn(gateway, objective, now) for objective in OBJECTIVES),
        reasons=tuple(Tally(*row) for row in proxy.recent.reasons(now, MINUTES)),
        decisions=tuple(_decided(line, now - at) for at, line in reversed(proxy.recent.last)),
    )


def _release(gateway: Gateway) -> Release:
    held, source = gateway.held, gateway.parts.source
    expires = held.current.manifest.expires if held.current else None
    return Release(source.line, source.channel, held.version, expires, held.problem)


def _group(gateway: Gateway, pool: Pool, now: float, found: list[tuple[Member, Server]]) -> Group:
    recent = gateway.proxy.recent
    return Group(
        pool=pool,
        answers=recent.answers(pool, now, MINUTES),
        p50_ms=recent.quantile_ms(pool, 0.50, now, MINUTES),
        p95_ms=recent.quantile_ms(pool, 0.95, now, MINUTES),
        endpoints=tuple(server for member, server in found if member.entry.pool is pool),
    )


def servers(gateway: Gateway, now: float) -> list[tuple[Member, Server]]:
    """Return every endpoint with what is to be told of it now."""
    usable = gateway.usable()
    return [(m, _server(m, now, usable=m.name in usable)) for m in gateway.fleet.members.values()]


def _server(member: Member, now: float, *, usable: bool) -> Server:
    seen, said = member.endpoint(now), member.status
    return Server(
        name=seen.name,
        usable=usable,
        drained=member.drained,
        heard=member.heard_of,
        state=seen.state,
        circuit=member.circuit(now),
        variant=seen.variant,
        release=said.served.release_version if said and said.served else None,
        round_trip_ms=seen.round_trip_ms,
        slots=seen.slots,
        busy=seen.busy,
        queued=seen.queued,
        in_flight=member.in_flight,
        cpu=seen.cpu,
        temperature_c=said.temperature_c if said else None,
        throttled=tuple(said.throttled) if said else (),
        problem=member.problem or None,
    )


def _burn(gateway: Gateway, objective: Objective, now: float) -> Burn:
    recent = gateway.proxy.recent
    missed, asked = recent.missed(objective, now, MINUTES)
    return Burn(
        objective=objective.name,
        pool=objective.pool,
        share=objective.share,
        within_ms=objective.within_ms,
        asked_5m=asked,
        burn_5m=objective.burn(missed, asked),
        burn_1h=recent.burn(objective, now, HOUR),
    )


def _decided(line: Line, ago_s: float) -> Decided:
    return Decided(
        ago_s=round(ago_s, 1),
        kind=line.kind,
        pool=line.pool,
        endpoint=line.endpoint,
        variant=line.variant,
        reason=line.reason or line.code or "",
        outcome=line.outcome,
        degraded=line.degraded,
        begun_ms=line.total_ms if line.first_ms is None else line.first_ms,
    )
