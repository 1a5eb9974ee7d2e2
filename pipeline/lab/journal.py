"""What a gateway's journal says of a while: how long answers took to begin, where requests went, what became of them.

Rules: an answer's time is that to its first token where it is streamed, and to its last where it is not, as the
objectives count; lines that are no request's (warnings, what operators did) are passed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.manifest.evidence import quantile
from pipeline.peers.slo import FAULTS, OBJECTIVES, Objective
from pipeline.peers.status import Pool


class Asked(BaseModel):
    """One request; times in ms, `at` when it came, in seconds since 1970."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    at: float
    pool: str
    outcome: str
    endpoint: str | None = None
    reason: str | None = None
    code: str | None = None
    degraded: bool = False
    stream: bool = False
    prompt_tokens: int = 0
    generated: int = 0
    failures: int = 0
    continued: int = 0
    first_ms: float | None = None
    total_ms: float

    @property
    def begun_ms(self) -> float:
        """How long the answer took to begin."""
        return self.total_ms if self.first_ms is None else self.first_ms


@dataclass(frozen=True)
class Times:
    """Of a pool's answers, or of all: how many, and their quantiles in ms."""

    answers: int
    p50: float
    p95: float
    p99: float


def read(lines: Iterable[str], since: float, until: float) -> list[Asked]:
    """Return the requests that came between two times, in seconds since 1970."""
    found = (_asked(line) for line in lines)
    return [asked for asked in found if asked is not None and since <= asked.at < until]


def lines(told: Iterable[str], since: float) -> list[str]:
    """Return the lines of all that a gateway printed that are its journal's, and not older, in seconds since 1970."""
    return [line for line in told if (asked := _asked(line)) is not None and asked.at >= since]


def _asked(line: str) -> Asked | None:
    try:
        return Asked.model_validate_json(line)
    except ValidationError:
        return None


def times(requests: Sequence[Asked], pool: Pool | None = None) -> Times | None:
    """Return how long a pool's answers took, or all; None without answers."""
    taken = [r.begun_ms for r in answered(requests, pool)]
    if not taken:
        return None
    return Times(len(taken), quantile(taken, 0.5), quantile(taken, 0.95), quantile(taken, 0.99))


def answered(requests: Sequence[Asked], pool: Pool | None = None) -> list[Asked]:
    """Return the requests that a pool answered, or any."""
    return [r for r in requests if r.outcome == "answered" and (pool is None or r.pool == pool)]


def kept(requests: Sequence[Asked], objective: Objective) -> float | None:
    """Return the share of an objective's requests that kept it; None without any."""
    if objective.within_ms is None:
        faults = sum(r.code in FAULTS for r in requests)
        good = len(answered(requests))
        return good / (good + faults) if good + faults else None
    taken = [r.begun_ms for r in answered(requests, objective.pool)]
    return sum(ms <= objective.within_ms for ms in taken) / len(taken) if taken else None


def objectives(requests: Sequence[Asked]) -> list[tuple[Objective, float | None]]:
    """Return each objective with the share that kept it."""
    return [(o, kept(requests, o)) for o in OBJECTIVES]


def reasons(requests: Sequence[Asked]) -> list[tuple[str, int]]:
    """Return why requests went where they went, the most frequent first."""
    found = Counter(f"{r.pool}: {r.reason or r.code or r.outcome}" for r in requests)
    return sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
