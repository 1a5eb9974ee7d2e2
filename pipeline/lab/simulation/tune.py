"""The search for thresholds: many candidates on short traces, the better third of them on longer ones, and again.

Rules: candidates are compared on the same requests with the same luck; the seeds that choose are not those that report;
what is in force now is a candidate like any other, so that nothing worse is ever written.
Source: K. Jamieson and A. Talwalkar 2016, Non-stochastic best arm identification (successive halving); the first
candidates are a scrambled Sobol sequence's, the second round's lie around the best of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from pydantic import Field
from scipy import stats
from scipy.stats import qmc

from pipeline.catalog.document import Document
from pipeline.lab.simulation.dials import Dial, dials, turned
from pipeline.lab.simulation.results import Results, results
from pipeline.lab.simulation.run import run
from pipeline.lab.simulation.scenario import Scenario

_ETA = 3  # of a rung, one in so many goes on, to a trace so many times longer
_RUNGS = 3
_AROUND = 0.12  # of a dial's way: standard deviation of the second round's candidates
_REPORTS = 1_000_003  # seeds that report are this far from those that choose
_WORST = 20.0  # of an objective's burn rate; worse is no worse
_OFFLOAD = 0.5  # what an answer that leaves the edge costs besides, in shares of today's cost of an answer

Say = Callable[[int], object]  # hears of the runs so far


class Figure(Document):
    """A figure before and after, its mean over seeds; `change` with the 95 % interval of paired differences."""

    name: str
    before: float
    after: float
    change: float
    low: float
    high: float


class Tuned(Document):
    """What was found: values by their names, and what they gain on seeds that the search did not see.

    `requests` were counted in each run that reports, at least.
    """

    schema_version: int = 1
    scenario: str
    values: dict[str, float]
    was: dict[str, float]
    tried: int
    seeds: list[int]
    requests: int
    figures: list[Figure] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A scenario with its dials turned; `shares` is None for the one in force."""

    scenario: Scenario
    shares: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is tried: first candidates, requests of the shortest trace, and of each run that reports."""

    candidates: int = 27
    requests: int = 3000
    reported: int = 30000
    reports: int = 5
    seed: int = 1

    @property
    def runs(self) -> int:
        """How many runs that is."""
        rungs: int = sum(max(self.candidates // _ETA**r, 1) + 1 for r in range(_RUNGS))
        return 2 * (rungs + 2 + self.reports)


def loss(found: Results, usd: float) -> float:
    """Return how bad a run is: what burns beyond the objectives' budgets, then cost and what leaves the edge."""
    burns = [min(o.missed / o.asked / (1 - o.wanted), _WORST) for o in found.objectives if o.asked]
    over = sum(max(burn - 1, 0) for burn in burns)
    cost = (found.cost.per_1k_usd or 0.0) / usd if usd else 0.0
    return over + 0.01 * sum(burns) + cost + _OFFLOAD * (found.offload_share or 0.0)


def tune(scenario: Scenario, plan: Plan, say: Say, fixed: Collection[str] = ()) -> tuple[Scenario, Tuned]:
    """Return the scenario with the best thresholds that were found, those named in `fixed` as before, and the gains."""
    search = _Search(scenario, plan, say)
    known = dials(scenario, fixed)
    sobol = qmc.Sobol(len(known), rng=np.random.default_rng(plan.seed)).random(_power(plan.candidates))
    best = search.halved(search.made(known, sobol[: plan.candidates]) or [Candidate(scenario)])
    if best.shares is not None:
        rng = np.random.default_rng([plan.seed, 1])
        near = np.asarray(best.shares) + _AROUND * rng.standard_normal((plan.candidates - 1, len(known)))
        best = search.halved([best, *search.made(known, near.clip(0, 1))])
    seeds = [plan.seed + _REPORTS + n for n in range(plan.reports)]
    before, after = search.report(scenario, seeds), search.report(best.scenario, seeds)
    found = Tuned(
        scenario=scenario.name,
        values=_values(best.scenario, known),
        was=_values(scenario, known),
        tried=search.tried,
        seeds=seeds,
        requests=min(r.requests for r in before),
        figures=_figures(before, after),
    )
    return best.scenario, found


class _Search:
    def __init__(self, scenario: Scenario, plan: Plan, say: Say) -> None:
        self._now, self._plan, self._say = Candidate(scenario), plan, say
        self.tried = self._done = 0

    def made(self, known: Sequence[Dial], shares: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> list[Candidate]:
        """Return the candidates that the settings allow."""
        found = [(tuple(map(float, row)), turned(self._now.scenario, known, row)) for row in shares.tolist()]
        return [Candidate(scenario, row) for row, scenario in found if scenario is not None]

    def halved(self, candidates: list[Candidate]) -> Candidate:
        """Return the best, judged ever longer; what is in force stands among them to the end."""
        self.tried += len(candidates)
        for rung in range(_RUNGS):
            requests = self._plan.requests * _ETA**rung
            usd = self._run(self._now.scenario, self._plan.seed + rung, requests).cost.per_1k_usd or 0.0
            kept = len(candidates) if rung == 0 else max(len(candidates) // _ETA, 1)
            candidates = candidates[:kept]
            judged = [
                (loss(self._run(c.scenario, self._plan.seed + rung, requests), usd), n)
                for n, c in enumerate(candidates)
            ]
            candidates = [candidates[n] for _, n in sorted(judged)]
        requests = self._plan.requests * _ETA ** (_RUNGS - 1)
        now = self._run(self._now.scenario, self._plan.seed + _RUNGS, requests)
        usd = now.cost.per_1k_usd or 0.0
        best = self._run(candidates[0].scenario, self._plan.seed + _RUNGS, requests)
        return candidates[0] if loss(best, usd) < loss(now, usd) else self._now

    def report(self, scenario: Scenario, seeds: Sequence[int]) -> list[Results]:
        """Return what a scenario comes to with each seed."""
        return [self._run(scenario, seed, self._plan.reported) for seed in seeds]

    def _run(self, scenario: Scenario, seed: int, requests: int) -> Results:
        found = results(run(scenario, seed, requests=requests))
        self._done += 1
        self._say(self._done)
        return found


def _figures(before: Sequence[Results], after: Sequence[Results]) -> list[Figure]:
    names = list(_shown(before[0]))
    found = []
    for name in names:
        pairs = [(_shown(b).get(name), _shown(a).get(name)) for b, a in zip(before, after, strict=True)]
        whole = [(b, a) for b, a in pairs if b is not None and a is not None]
        if whole:
            found.append(_paired(name, *map(list, zip(*whole, strict=True))))
    return found


def _paired(name: str, before: Sequence[float], after: Sequence[float]) -> Figure:
    apart = np.asarray(after) - np.asarray(before)
    mean, half = float(apart.mean()), 0.0
    if len(apart) > 1:
        half = float(stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / sqrt(len(apart)))
    rounded = (round(v, 4) for v in (float(np.mean(before)), float(np.mean(after)), mean, mean - half, mean + half))
    return Figure(**dict(zip(("before", "after", "change", "low", "high"), rounded, strict=True)), name=name)


def _shown(found: Results) -> dict[str, float | None]:
    edge, every = found.times["edge"], found.times["all"]
    return {
        "edge p50, ms": edge.p50,
        "edge p95, ms": edge.p95,
        "global p95, ms": every.p95,
        **{f"{o.name}, % missed": 100 * o.missed / o.asked if o.asked else None for o in found.objectives},
        "offloaded, %": None if found.offload_share is None else 100 * found.offload_share,
        "USD for 1,000": found.cost.per_1k_usd,
        "Wh for 1,000": found.cost.per_1k_wh,
    }


def _values(scenario: Scenario, known: Sequence[Dial]) -> dict[str, float]:
    found = {}
    for dial in known:
        part = scenario.first_policy if dial.part == "policy" else getattr(scenario.controller, dial.part)
        found[dial.label] = getattr(part, dial.name)
    return found


def _power(least: int) -> int:
    """Return the power of two that holds so many: a Sobol sequence is balanced at those."""
    return int(2 ** max(least - 1, 1).bit_length())
