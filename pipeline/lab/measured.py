"""A scenario for the simulation out of what a lab's gateway wrote: how fast its servers are, what they are asked.

Rules: an answer's time is a line over its tokens, fitted to what came while nothing was broken; what the fit leaves is
the spread. Figures that a journal cannot tell (power, price, context) are those of `base`, and named as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import numpy as np

from pipeline.errors import StageError
from pipeline.lab.journal import Asked, answered
from pipeline.lab.simulation.figures import Figures
from pipeline.lab.simulation.scenario import Core, Edge, Kind, Scenario, Spread, Traffic, load
from pipeline.manifest.evidence import quantile
from pipeline.peers.policy import Policy
from pipeline.peers.status import Pool
from pipeline.serving.decision import Hint, Reason

LEAST = 10  # answers of a pool, to fit a line to
_SOURCE = "measured in this lab"
_KINDS = {Reason.SENSITIVE: "sensitive", Reason.LONG_PROMPT: "long", Reason.HINT: "large"}


def scenario(requests: Sequence[Asked], *, nodes: int, slots: dict[Pool, int], policy: Policy) -> Scenario:
    """Return a site as it was seen; raises StageError where too little was."""
    base = load("lab")
    assert base.core is not None, "the lab has an NVLink node"
    edge = figures(answered(requests, Pool.EDGE), base.speeds(base.edge.figures), slots[Pool.EDGE])
    core = figures(answered(requests, Pool.NVLINK), base.speeds(base.core.figures), slots[Pool.NVLINK])
    seconds = max(r.at for r in requests) - min(r.at for r in requests)
    return base.changed(
        name="this lab",
        about=f"{nodes} nodes and a large server as they were measured",
        hours=1.0,
        warmup_s=10.0,
        edge=Edge(nodes=nodes, figures="edge", round_trip_ms=0.5, jitter_ms=0.1),
        core=Core(replicas=1, most=1, figures="core", round_trip_ms=0.5, jitter_ms=0.1),
        traffic=Traffic(rate=len(requests) / seconds, kinds=_kinds(requests)),
        policy=policy,
        figures={"edge": edge, "core": core},
    )


def figures(found: Sequence[Asked], base: Figures, slots: int) -> Figures:
    """Return how fast a pool's servers are; raises StageError."""
    if len(found) < LEAST:
        raise StageError(f"{len(found)} answers are too few to tell how fast a pool is", hint="raise --seconds")
    tokens, took = np.array([r.generated for r in found], float), np.array([r.total_ms for r in found], float)
    slope, start = _line(tokens, took)
    rest = np.log(took / (start + slope * tokens))
    spread = float(1.4826 * np.median(np.abs(rest - np.median(rest))))  # of a normal distribution, by its median
    changed = {
        "machine": "a server of this lab", "overhead_ms": 0.0, "prompt_ms": start, "prompt_token_ms": 0.0,
        "token_ms": slope, "spread": spread, "slots": slots,
    }  # fmt: skip
    return Figures.model_validate(
        {**base.model_dump(), **changed, "sources": {**base.sources, **dict.fromkeys(changed, _SOURCE)}}
    )


def _line(tokens: np.ndarray, took: np.ndarray) -> tuple[float, float]:
    """Return slope and start of the line that is nearest to most answers; both are above 0."""
    for _ in range(3):
        slope, start = np.polyfit(tokens, took, 1) if len(set(tokens.tolist())) > 1 else (0.0, float(np.median(took)))
        apart = np.abs(took - (start + slope * tokens))
        near = apart <= max(3 * float(np.median(apart)), 1e-6)
        tokens, took = tokens[near], took[near]
    return max(float(slope), 1e-3), max(float(start), 1e-3)


def _kinds(requests: Sequence[Asked]) -> dict[str, Kind]:
    groups: dict[tuple[str, bool], list[Asked]] = {}
    for r in answered(requests):
        name = _KINDS.get(Reason(r.reason), "short") if r.reason in set(Reason) else "short"
        groups.setdefault((name, r.stream), []).append(r)
    return {
        f"{name}, {'streamed' if stream else 'whole'}": Kind(
            share=len(rows),
            prompt=_spread([r.prompt_tokens for r in rows]),
            answer=_spread([r.generated for r in rows]),
            sensitive=name == "sensitive",
            hint=Hint.LARGE if name == "large" else Hint.AUTO,
            stream=stream,
        )
        for (name, stream), rows in sorted(groups.items())
    }  # fmt: skip


def _spread(values: Sequence[int]) -> Spread:
    ordered = sorted(max(v, 1) for v in values)
    median, p95 = quantile(ordered, 0.5), quantile(ordered, 0.95)
    return Spread(median=median, p95=p95) if log(p95 / median) > 0 else Spread(fixed=median)
