"""The best recipe to be found for a variant within its budget.

Rules: the objective is the mean KL over all positions of the calibration examples, prompt and answer alike; of a
variant tuned to a prompt family, of that family's examples. The survey's losses add up to a prediction, of which the
best mix is solved for exactly (`knapsack`); mixes near it are then measured as whole models, because losses do not
quite add up. What is chosen must part no further from the unquantized tier on answers, and in the worst hundredth, than
the best of llama.cpp's presets within the budget. Golden prompts are not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import inf

from pipeline.catalog.names import Tier, Variant
from pipeline.catalog.recipe import Budget, Recipe
from pipeline.errors import CatalogError, StageError
from pipeline.manifest import gguf
from pipeline.manifest.search import BYTES, INSTRUCTIONS, READ, Figures, Found, Point, best_within, unbettered
from pipeline.stages.mix import Market, Places
from pipeline.stages.project import Project
from pipeline.stages.quality import rounded
from pipeline.stages.quantize import matrices, origin
from pipeline.stages.survey import Survey, Weigh
from pipeline.stages.trials import Trial, Trials
from pipeline.toolchain import kernels

ANSWER_WEIGHTS = (0.0, 0.1, 0.3, 1.0)  # of the mean KL on answers, beside the mean over all positions
ROUND = 6  # candidates measured before it is looked again where to go on


class Searcher:
    """Finds a recipe within a budget, which a variant tuned to a family shares with the variant for all prompts."""

    def __init__(self, project: Project, variant: Variant, budget: Budget, trials: Trials | None = None) -> None:
        """Read the survey, and prepare trials where none are given."""
        self._variant, self._budget = variant, budget
        self.survey = Survey.read(project.sensitivity(variant.tier))
        self.trials = trials or Trials(project, variant.tier)
        kinds = budget.types or kernels.fast(variant.target)
        self.market = Market(self.survey, kernels.per_weight(variant.target), frozenset(kinds))
        self._own = [n for n, e in enumerate(self.trials.examples) if variant.family in {"", e.family}]
        self._positions = self._counted()
        self._presets = [
            self._measured(p.label, p.trial, self.market.sizes(p.trial.types)) for p in self.survey.presets
        ]
        self._others = _others(project, self.trials, variant.tier)

    def search(self) -> tuple[Recipe, Found]:
        limits = self.limits()
        solved = [s for s in (self.market.solve(limits, self._weigh(w)) for w in ANSWER_WEIGHTS) if s]
        if not solved:
            raise StageError(
                f"{self._variant}: no mix fits {self._said(limits)}",
                hint=f"raise the budget in models/{self._variant.tier}.yaml: recipes.{self._variant.target}.search",
            )
        tried = self._measure([s.chosen for s in solved])
        first = solved[0].chosen
        peer = best_within(self._presets, limits)
        while len(tried) < self._budget.measured:
            best = min(tried, key=lambda places: _merit(tried[places], peer))
            room = min(ROUND, self._budget.measured - len(tried))
            near = (p for p in self.market.near(best, limits, self._weigh(0.0)) if p not in tried)
            more = self._measure(list(islice(near, room)))
            if not more:
                break
            tried |= more
        best = min(tried, key=lambda places: _merit(tried[places], peer))
        front = _front([*tried.values(), *self._at_presets()])
        return self.market.recipe(best), Found(
            budget=self._budget.model_dump(mode="json", exclude_none=True),
            limits=limits,
            bound=rounded(max(0.0, solved[0].bound)),
            solved=tried[first],
            chosen=tried[best],
            types=self.market.types(best),
            front=front,
            presets=self._presets,
            losses=self._losses(),
            measured=len(tried),
        )

    def limits(self) -> dict[str, float]:
        """Return the budget, in bytes of all matrices, bytes a token, and instructions a token.

        Raises:
            CatalogError: the preset was not surveyed.
        """
        budget = self._budget
        limits: dict[str, float] = {}
        if budget.bytes_max is not None:
            limits[BYTES] = budget.bytes_max - self._others
        if budget.bytes_per_token_max is not None:
            limits[READ] = budget.bytes_per_token_max
        if budget.preset is not None:
            same = [p for p in self._presets if p.name.partition("+")[0] == budget.preset]
            if not same:
                raise CatalogError(
                    f"{self._variant}: preset {budget.preset} is not among those surveyed",
                    hint="choose another, or bytes_max",
                )
            limits[BYTES] = min(limits.get(BYTES, inf), same[0].size)
            limits[INSTRUCTIONS] = same[0].instructions_per_token * budget.instructions_ratio_max
        return limits

    def _weigh(self, answers: float) -> Weigh:
        every, of_answers = self._positions

        def weigh(_fold: int, family: str, part: int) -> float:
            if self._variant.family not in {"", family}:
                return 0.0
            return 1 / every + (answers / of_answers if part else 0.0)

        return weigh

    def _measure(self, mixes: Sequence[Places]) -> dict[Places, Point]:
        mixes = list(dict.fromkeys(mixes))
        trials = self.trials.measure([self.market.recipe(m) for m in mixes], shown=f"{self._variant}: recipes")
        return {mix: self._point(mix, trial) for mix, trial in zip(mixes, trials, strict=True)}

    def _point(self, mix: Places, trial: Trial) -> Point:
        predicted = rounded(self.market.loss(mix, self._weigh(0.0)))
        return self._measured("search", trial, self.market.total(mix), predicted)

    def _measured(self, name: str, trial: Trial, takes: Mapping[str, float], predicted: float | None = None) -> Point:
        return Point(
            name=name,
            size=int(takes[BYTES]),
            bytes_per_token=int(takes[READ]),
            instructions_per_token=rounded(takes[INSTRUCTIONS]),
            predicted_kl=predicted,
            measured=self._figures(trial),
        )

    def _figures(self, trial: Trial) -> Figures:
        every, of_answers = self._positions
        on_prompts, on_answers = (sum(part[n] for n in self._own) for part in (trial.prompt, trial.answer))
        return Figures(
            mean_kl=rounded((on_prompts + on_answers) / every),
            answer_kl=rounded(on_answers / of_answers),
            p99_kl=trial.family_p99[self._variant.family] if self._variant.family else trial.p99,
        )

    def _counted(self) -> tuple[int, int]:
        """Positions of all examples that count, and of their answers alone."""
        own = [self.trials.examples[n] for n in self._own]
        return sum(e.prompt + e.answer for e in own), sum(e.answer for e in own)

    def _at_presets(self) -> list[Point]:
        """The solved mix at each preset's bytes and instructions."""
        limits = {
            (p.size, p.instructions_per_token): {
                BYTES: float(p.size),
                INSTRUCTIONS: p.instructions_per_token * self._budget.instructions_ratio_max,
            }
            for p in self._presets
        }
        solved = [self.market.solve(limit, self._weigh(0.0)) for _, limit in sorted(limits.items())]
        return list(self._measure([s.chosen for s in solved if s]).values())

    def _losses(self) -> dict[str, dict[str, float]]:
        weigh = self._weigh(0.0)
        return {
            matrix.name: {
                kind: rounded(min(self.survey.total(o.kl, weigh) for o in group if o.type == kind))
                for kind in sorted({o.type for o in group})
            }
            for matrix, group in zip(self.survey.matrices, self.market.groups, strict=True)
        }

    def _said(self, limits: Mapping[str, float]) -> str:
        return ", ".join(f"{limit:.0f} {name}" for name, limit in limits.items())


def _others(project: Project, trials: Trials, tier: Tier) -> int:
    """The most bytes of a released file that are not its matrices': quantizing adds entries to the header, and padding
    differs by type."""
    found, matrix = matrices(trials.header), project.imatrix(tier)
    added = {"general.quantization_version": 2, **origin(matrix, trials.imatrix, tier)}
    return (
        trials.source.stat().st_size
        - sum(t.size for t in found)
        + sum(gguf.entry_size(key, value) for key, value in added.items())
        + trials.header.alignment * (len(found) + 1)
    )


def _front(points: Iterable[Point]) -> list[Point]:
    """The points that no other betters in bytes, instructions and KL, by bytes."""
    by_costs: dict[tuple[float, ...], Point] = {
        (p.size, p.instructions_per_token, p.measured.mean_kl): p for p in points
    }
    return [by_costs[costs] for costs in unbettered(by_costs)]


def _merit(point: Point, peer: Point | None) -> tuple[int, float]:
    """What is less is better: first in how many ways it is worse than the best preset, then mean KL."""
    ours = point.measured
    if peer is None:
        return 0, ours.mean_kl
    theirs = peer.measured
    return (ours.answer_kl > theirs.answer_kl) + (ours.p99_kl > theirs.p99_kl), ours.mean_kl
