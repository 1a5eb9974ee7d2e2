"""Would a recipe tuned to one prompt family pay? Said of each family, on examples that the tuning did not see.

Rules: a family's examples are split into folds; for each a recipe is searched for with the other folds' losses, of that
family alone, within the variant's own budget, and measured on the fold beside the variant's recipe, which was chosen on
all. Crossed prompts are searched with, each within its fold, and judge nothing. Tuning pays where the KL falls by a
tenth at least, and surely: the 95 % interval of the ratio, over examples drawn anew, lies below one. Of fewer than
`ENOUGH` examples an interval says nothing, so tuning to them never pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from pipeline.catalog.names import Variant
from pipeline.catalog.recipe import Recipe, Search
from pipeline.errors import CatalogError
from pipeline.manifest.search import Tuned
from pipeline.stages.mix import Places
from pipeline.stages.project import Project
from pipeline.stages.quality import bootstrap, rounded
from pipeline.stages.searcher import Searcher
from pipeline.stages.survey import Weigh
from pipeline.stages.trials import FOLDS, Trial

PAYS = 0.9  # of the variant's own KL, at most
ENOUGH = 8  # examples
NEAR = 5  # mixes measured beside the solved one

Pair = tuple[float, float]  # of one example: KL with the family's recipe, and with the variant's


def tuned(project: Project, variant: Variant) -> list[Tuned]:
    """Return what tuning to each family is worth, beside the variant's recipe as it was found.

    Raises:
        CatalogError: the variant's recipe is written out, so there is no budget.
        StageError, ToolError: as `search`.
    """
    chosen = project.chosen(variant)
    if not isinstance(chosen, Search):
        raise CatalogError(
            f"{variant}: its recipe is written out",
            hint=f"write a budget in models/{variant.tier}.yaml: recipes.{variant.target}.search",
        )
    searcher, recipe = Searcher(project, variant, chosen.search), project.recipe(variant)
    return [verdict(searcher, recipe, family) for family in searcher.survey.families]


def verdict(searcher: Searcher, recipe: Recipe, family: str) -> Tuned:
    """Return what tuning to a family is worth beside a variant's recipe."""
    examples = searcher.trials.examples
    (general,) = searcher.trials.measure([recipe])
    places, own = [], []
    for fold in range(FOLDS):
        trial = _search(searcher, family, fold)
        held = [n for n, e in enumerate(examples) if (e.family, e.fold) == (family, fold) and e.answer]
        places += held
        own += [trial.prompt[n] + trial.answer[n] for n in held]
    before = [general.prompt[n] + general.answer[n] for n in places]
    positions = sum(examples[n].prompt + examples[n].answer for n in places)
    return judged(family, list(zip(own, before, strict=True)), positions)


def judged(family: str, pairs: Sequence[Pair], positions: int) -> Tuned:
    """Return what is to be thought of the KL, summed over `positions`, of a family's examples."""
    low, high = bootstrap([pairs], _ratio)
    ratio = _ratio(pairs)
    return Tuned(
        family=family,
        examples=len(pairs),
        general=rounded(sum(before for _, before in pairs) / positions),
        own=rounded(sum(own for own, _ in pairs) / positions),
        ratio=rounded(ratio),
        low=rounded(low),
        high=rounded(high),
        pays=len(pairs) >= ENOUGH and ratio <= PAYS and high < 1,
    )


def _search(searcher: Searcher, family: str, fold: int) -> Trial:
    """The best recipe for a family by what all folds but one say."""

    def weigh(at: int, of: str, _part: int) -> float:
        return float(of == family and at != fold)

    found = _solved(searcher, weigh)
    learned = [n for n, e in enumerate(searcher.trials.examples) if e.family == family and e.fold != fold]
    trials = searcher.trials.measure(found, shown=f"{family}, fold {fold + 1}")
    return min(trials, key=lambda trial: sum(trial.prompt[n] + trial.answer[n] for n in learned))


def _solved(searcher: Searcher, weigh: Weigh) -> list[Recipe]:
    limits = searcher.limits()
    solved = searcher.market.solve(limits, weigh)
    assert solved is not None, "the variant's own recipe fits the budget"
    mixes: list[Places] = [solved.chosen, *islice(searcher.market.near(solved.chosen, limits, weigh), NEAR)]
    return [searcher.market.recipe(mix) for mix in mixes]


def _ratio(pairs: Sequence[Pair]) -> float:
    """What a family's recipe leaves of the KL; one where there was none to lose."""
    before = sum(before for _, before in pairs)
    return sum(own for own, _ in pairs) / before if before else 1.0
