"""What a controller would have seen in the days before a scenario begins, so that it can tell the future.

Rules: the days before are drawn as the scenario's own are, with another seed; a pool was asked for what `route` sends
nowhere else (batch, long answers, long prompts, the hint `large`); what a busy edge would have sent is not in it.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from pipeline.control.history import Kept
from pipeline.lab.simulation.scenario import Kind, Scenario
from pipeline.lab.simulation.traffic import Arrivals, Ints
from pipeline.peers.policy import Policy
from pipeline.serving.decision import Hint, Priority

_APART = 104729  # the seed of the days before is apart from the scenario's
_DAY_H, _HOUR = 24.0, 3600.0


def past(scenario: Scenario, seed: int) -> list[Kept]:
    """Return what was kept of each pool's demand, by the pool's number."""
    controller, core = scenario.controller, scenario.core
    if controller is None or core is None or not scenario.history_days:
        return []
    step_s = controller.forecast.step_s
    before = scenario.changed(
        start=scenario.start - timedelta(days=scenario.history_days), hours=scenario.history_days * _DAY_H
    )
    buckets = round(before.hours * _HOUR / step_s)
    counts = np.zeros((core.pools, buckets))
    for at, site, kind, fresh, *_ in Arrivals(before, seed + _APART).columns():
        asked = _needs(kind, fresh, list(scenario.traffic.kinds.values()), controller.policy)
        pool = site[asked] % core.pools
        bucket = (at[asked] // step_s).astype(np.int64)
        np.add.at(counts, (pool, bucket.clip(max=buckets - 1)), 1)
    end, name = scenario.start.timestamp() // step_s * step_s, controller.pools[0].name
    return [Kept(step_s=step_s, end=end, pools={name: (row / step_s).tolist()}) for row in counts]


def _needs(kind: Ints, fresh: Ints, kinds: list[Kind], policy: Policy) -> NDArray[np.bool_]:
    """Return which requests only the NVLink pool will do for."""
    always = [
        not k.sensitive
        and (
            k.priority is Priority.BATCH or k.hint is Hint.LARGE or (k.max_tokens or 0) >= policy.long_generation_tokens
        )
        for k in kinds
    ]
    long = fresh + np.asarray([k.common for k in kinds])[kind] >= policy.tiny_prompt_tokens
    free = np.asarray([not k.sensitive for k in kinds])
    return np.asarray(np.asarray(always)[kind] | (long & free[kind]))
