"""A gateway's journal as traffic: the requests that came, when they came.

Rules: of each line its time, its tokens and why it went where it went are read, for a journal has no prompts: what went
there as sensitive, batch, long or for the large tier is so again, everything else is routed anew. So is what was tried
again, asked twice, continued or degraded: of such a request the journal does not say what it was. Lines of requests
that were refused before anything was tried count too; those that say no tokens are left out. Prompts count as new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import CatalogError
from pipeline.lab.simulation.scenario import Kind, Scenario, Spread
from pipeline.lab.simulation.traffic import Block
from pipeline.serving.decision import Hint, Priority, Reason

_LONG = 256  # tokens that such an answer was bounded by, at least: the policy's default
_END = datetime(2100, 1, 1, tzinfo=UTC).timestamp()  # what says later is no time in seconds


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    at: float = Field(ge=0, lt=_END)
    prompt_tokens: int = Field(ge=0)
    generated: int = Field(ge=0)
    reason: str | None = None
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Replay:
    """A scenario with the journal's kinds, length and start, and its requests in one block."""

    scenario: Scenario
    block: Block


def replay(scenario: Scenario, journals: Sequence[Iterable[str]], seed: int) -> Replay:
    """Return journals as traffic of a scenario's fleet, each at a site of its own, in turn.

    Raises:
        CatalogError: a line is none of a journal's, or has no time (`at`), or there is no request at all.
    """
    found = [(line, n % scenario.edge.sites) for n, lines in enumerate(journals) for line in _lines(lines)]
    found.sort(key=lambda pair: pair[0].at)
    if not found:
        raise CatalogError("the journals have no request with tokens", hint="give a gateway's standard output")
    began, last = found[0][0].at, found[-1][0].at
    names = [_kind(line) for line, _ in found]
    kinds = {name: _KINDS[name] for name in sorted(set(names))}
    places = {name: place for place, name in enumerate(kinds)}
    rng, n = np.random.default_rng(seed), len(found)
    block = Block(
        at=[line.at - began for line, _ in found],
        site=[site for _, site in found],
        kind=[places[name] for name in names],
        fresh=[max(line.prompt_tokens, 1) for line, _ in found],
        answer=[max(line.generated, 1) for line, _ in found],
        prompt_id=[-1] * n,
        luck=rng.standard_normal(n).tolist(),
        phase=rng.random(n).tolist(),
        way=rng.standard_exponential(n).tolist(),
    )
    changed = scenario.changed(
        start=datetime.fromtimestamp(began, UTC),
        hours=max(last - began, 1.0) / 3600,
        warmup_s=0.0,
        history_days=0.0,
        traffic=scenario.traffic.model_copy(update={"kinds": kinds}),
    )
    return Replay(changed, block)


def _lines(lines: Iterable[str]) -> Iterator[_Line]:
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = _Line.model_validate_json(text)
        except ValidationError as e:
            first = e.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise CatalogError(
                f"line {number} is none of a journal's: {where}: {first['msg']}",
                hint="a gateway writes its journal to standard output; lines without a time are of an older one",
            ) from e
        if line.prompt_tokens or line.generated:
            yield line


def _kind(line: _Line) -> str:
    name = {
        Reason.SENSITIVE: "sensitive", Reason.BATCH: "batch", Reason.HINT: "large", Reason.LONG_GENERATION: "long",
    }.get(Reason(line.reason)) if line.reason in set(Reason) else None  # fmt: skip
    return (name or "plain") + ("" if line.stream else ", whole")


def _kinds() -> Iterator[tuple[str, Kind]]:
    plain = Kind(share=1.0, prompt=Spread(fixed=1.0), answer=Spread(fixed=1.0))
    variants: dict[str, dict[str, object]] = {
        "plain": {}, "sensitive": {"sensitive": True}, "batch": {"priority": Priority.BATCH},
        "large": {"hint": Hint.LARGE}, "long": {"max_tokens": _LONG},
    }  # fmt: skip
    for name, changes in variants.items():
        yield name, plain.model_copy(update=changes)
        yield f"{name}, whole", plain.model_copy(update={**changes, "stream": False})


_KINDS = dict(_kinds())
