"""Stage `search`: the recipe of a variant, as its tier's file writes it out, or the best to be found within its budget.

Rules: a prompt family that the budget names gets a recipe of its own where tuning to it pays on examples that the
tuning did not see (`tuned`); it is then searched for on all of that family's examples, within the same budget. Whether
it pays stands in the record either way. The folders of recipes and records are written whole: what pays no more goes.
"""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from pipeline.catalog.names import Variant
from pipeline.catalog.recipe import Budget, Recipe
from pipeline.manifest.search import Found
from pipeline.ports import files
from pipeline.stages.project import Project
from pipeline.stages.searcher import Searcher
from pipeline.stages.tuned import verdict

How = tuple[Recipe, Found | None]  # a recipe, and how it was found


def search(project: Project, variant: Variant) -> Recipe:
    """Write and return the variant's recipe, with how it was found where it was searched for, and its kin's.

    Raises:
        CatalogError: there are no calibration examples of a family to tune to.
        StageError: nothing fits the budget, or the survey is missing.
        ToolError: llama.cpp or the golden runner fails.
    """
    chosen = project.chosen(variant)
    found = {variant: (chosen, None)} if isinstance(chosen, Recipe) else _searched(project, variant, chosen.search)
    _write(project, found)
    return found[variant][0]


def written(recipe: Recipe) -> bytes:
    """Return a recipe as the YAML that `models/<tier>.yaml` takes."""
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=False, width=1000).encode()


def _searched(project: Project, variant: Variant, budget: Budget) -> Mapping[Variant, How]:
    searcher = Searcher(project, variant, budget)
    recipe, how = searcher.search()
    verdicts = [verdict(searcher, recipe, family) for family in budget.families]
    kin = [Variant(variant.tier, variant.target, v.family) for v in verdicts if v.pays]
    found: dict[Variant, How] = {variant: (recipe, how.model_copy(update={"tuned": verdicts}))}
    return found | {own: Searcher(project, own, budget, searcher.trials).search() for own in kin}


def _write(project: Project, found: Mapping[Variant, How]) -> None:
    first = next(iter(found))
    with (
        files.new_folder(project.recipe_file(first).parent) as recipes,
        files.new_folder(project.search(first).parent) as records,
    ):
        for variant, (recipe, how) in found.items():
            (recipes / project.recipe_file(variant).name).write_bytes(written(recipe))
            (records / project.search(variant).name).write_bytes((how.encode() if how else b"null") + b"\n")
