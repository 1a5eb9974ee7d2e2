"""Recipes: what llama.cpp would ignore, abort on or turn to garbage is refused before anything starts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalog.golden import Example
from pipeline.catalog.recipe import PRESETS, TENSOR_TYPES, Recipe
from pipeline.errors import CatalogError
from pipeline.stages.calibrate import in_turn
from pipeline.stages.quantize import Inputs, refuse_unmatched, refuse_unusable

TENSORS = ["token_embd.weight", "blk.0.attn_q.weight", "blk.0.attn_norm.weight", "output.weight"]
IMATRIX = {"blk.0.attn_q.weight": np.ones(256, np.float32)}
INPUTS = Inputs(source="1" * 64, imatrix="2" * 64, library="3" * 64)


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        pytest.param(Recipe(base="IQ2_XXS", imatrix=False), "IQ2_XXS without", id="base-needs-imatrix"),
        pytest.param(Recipe(base="IQ3_XS", imatrix=False), "IQ3_XS without", id="base-mixes-in-a-type-that-does"),
        pytest.param(Recipe(base="Q2_K_S", imatrix=False), "Q2_K_S without", id="k-quant-that-needs-imatrix"),
        pytest.param(
            Recipe(base="Q4_K_M", imatrix=False, tensors=["ffn_up=IQ1_S"]), "IQ1_S without", id="type-needs-imatrix"
        ),
        pytest.param(Recipe(base="BF16", tensors=["ffn_up=Q4_K"]), "ignores 'tensors'", id="types-under-a-float-base"),
    ],
)
def test_recipes_that_cannot_work_are_refused(recipe: Recipe, reason: str) -> None:
    """A recipe that llama.cpp would ignore or turn to garbage is a catalog error naming file and target."""
    with pytest.raises(CatalogError, match=reason) as e:
        refuse_unusable(recipe, "models/tiny-edge.yaml: recipes.arm64")
    assert e.value.message.startswith("models/tiny-edge.yaml: recipes.arm64")


@pytest.mark.parametrize("base", PRESETS)
def test_every_preset_may_be_used_with_an_importance_matrix(base: str) -> None:
    """No preset is refused when there is an importance matrix."""
    refuse_unusable(Recipe(base=base), "here")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        pytest.param(["blk[.]7[.]=Q8_0"], "matches no tensor", id="pattern-without-tensor"),
        pytest.param(["token_embd=IQ2_XXS"], "token_embd.weight as IQ2_XXS", id="embedding-has-no-activations"),
        pytest.param(["^output=IQ1_M"], "output.weight as IQ1_M", id="output-has-no-activations"),
        pytest.param([".=IQ2_S"], "token_embd.weight as IQ2_S", id="pattern-for-all"),
    ],
)
def test_patterns_are_held_against_the_model(tensors: list[str], reason: str) -> None:
    """A pattern that matches nothing, or on which llama.cpp would abort, is refused."""
    with pytest.raises(CatalogError, match=reason):
        refuse_unmatched(Recipe(base="Q4_K_M", tensors=tensors), TENSORS, IMATRIX, "here")


def test_the_first_pattern_that_matches_counts() -> None:
    """A type that would be refused for a tensor is allowed where an earlier pattern gives that tensor another."""
    tensors = ["token_embd=Q8_0", "^output=Q6_K", ".=IQ2_S"]
    refuse_unmatched(Recipe(base="Q4_K_M", tensors=tensors), TENSORS, IMATRIX, "here")


@given(st.permutations(["token_embd", "output", "ffn_down", "."]))
def test_the_order_of_patterns_is_part_of_the_digest(patterns: list[str]) -> None:
    """Two orders of the same patterns have one digest only if they are one order."""
    first = Recipe(base="Q4_K_M", tensors=[f"{p}=Q8_0" for p in ("token_embd", "output", "ffn_down", ".")])
    other = Recipe(base="Q4_K_M", tensors=[f"{p}=Q8_0" for p in patterns])
    assert (first.digest == other.digest) == (first.tensors == other.tensors)


@given(st.sampled_from(sorted(PRESETS)), st.sampled_from(sorted(TENSOR_TYPES)), st.booleans())
def test_equal_recipes_have_equal_digests(base: str, kind: str, imatrix: bool) -> None:
    """A recipe read back from its own JSON has the same digest."""
    recipe = Recipe(base=base, imatrix=imatrix, tensors=[f"ffn_up={kind}"])
    assert Recipe.model_validate_json(recipe.model_dump_json()).digest == recipe.digest


@pytest.mark.parametrize(
    ("recipe", "inputs", "equal"),
    [
        pytest.param(Recipe(base="Q8_0"), INPUTS, True, id="equal"),
        pytest.param(Recipe(base="Q6_K"), INPUTS, False, id="other-recipe"),
        pytest.param(Recipe(base="Q8_0", imatrix=False), INPUTS, False, id="without-imatrix"),
        pytest.param(Recipe(base="Q8_0"), Inputs("0" * 64, "2" * 64, "3" * 64), False, id="other-model"),
        pytest.param(Recipe(base="Q8_0"), Inputs("1" * 64, "0" * 64, "3" * 64), False, id="other-imatrix"),
        pytest.param(Recipe(base="Q8_0"), Inputs("1" * 64, "2" * 64, "0" * 64), False, id="other-llama.cpp"),
    ],
)
def test_the_key_of_a_file_names_what_affects_its_bytes(recipe: Recipe, inputs: Inputs, equal: bool) -> None:
    """Files share a key only if model, importance matrix, recipe and llama.cpp are equal."""
    assert (inputs.key(recipe) == INPUTS.key(Recipe(base="Q8_0"))) is equal


def test_an_importance_matrix_that_is_not_used_does_not_change_the_key() -> None:
    """A recipe without importance matrix has one key whatever the matrix is."""
    recipe = Recipe(base="Q8_0", imatrix=False)
    assert INPUTS.key(recipe) == Inputs("1" * 64, "0" * 64, "3" * 64).key(recipe)


def test_calibration_takes_families_in_turn() -> None:
    """However short the text is cut, each family has as many examples in it as another, give or take one."""
    examples = [
        Example(family=f, prompt=f"{f}{i}", answer="x") for f, n in (("a", 3), ("b", 1), ("c", 2)) for i in range(n)
    ]
    assert [e.prompt for e in in_turn(examples)] == ["a0", "b0", "c0", "a1", "c1", "a2"]
