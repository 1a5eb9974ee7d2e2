"""What a mix costs, what is near it, and the recipe that says it."""

from __future__ import annotations

import re

import pytest

from pipeline.stages.mix import BYTES, INSTRUCTIONS, READ, Market, patterns
from pipeline.stages.survey import Option, Survey, Surveyed, size

KINDS = ("Q2_K", "Q4_K", "Q8_0")
LOSS = {"Q2_K": 9.0, "Q4_K": 1.0, "Q8_0": 0.01}


def _surveyed(name: str, rows: int, weight: float) -> Surveyed:
    options = [
        Option(type=kind, imatrix=imatrix, kl=[[[weight * LOSS[kind] * (0.8 if imatrix else 1.0), 0.0]]])
        for kind in KINDS
        for imatrix in ((False, True) if name.startswith("blk") and kind != "Q8_0" else (False,))
    ]  # fmt: skip
    return Surveyed(name=name, columns=256, rows=rows, options=options)


SURVEY = Survey(
    families=["total"],
    positions=[[[10, 5]]],
    matrices=[
        _surveyed("token_embd.weight", 1000, 5.0),
        *[
            _surveyed(f"blk.{layer}.{part}.weight", 256, layer + 1.0)
            for layer in range(3)
            for part in ("attn_q", "ffn_up")
        ],
        _surveyed("output.weight", 1000, 3.0),
    ],
)
MARKET = Market(SURVEY, {"Q2_K": 0.6, "Q4_K": 0.4, "Q8_0": 0.5}, frozenset(KINDS))


def _weigh(_fold: int, _family: str, _part: int) -> float:
    return 1.0


def test_an_embedding_is_looked_up_and_not_multiplied() -> None:
    """It takes its bytes on disk, one row a token, and no instructions; the others take all of theirs."""
    places = tuple(0 for _ in SURVEY.matrices)
    takes = MARKET.total(places)
    blocks, output = 6 * size("Q2_K", 256, 256), size("Q2_K", 256, 1000)
    assert takes[BYTES] == blocks + 2 * output
    assert takes[READ] == blocks + output + size("Q2_K", 256, 1)
    assert takes[INSTRUCTIONS] == pytest.approx(0.6 * 256 * (6 * 256 + 1000))
    assert takes == pytest.approx(MARKET.sizes(dict.fromkeys([m.name for m in SURVEY.matrices], "Q2_K")))


def test_what_is_near_is_within_limits_and_comes_by_its_predicted_loss() -> None:
    """Neighbours differ in at most two matrices, fit, and are ordered."""
    limits = {BYTES: 1.1 * MARKET.total(tuple(0 for _ in SURVEY.matrices))[BYTES] + 200_000}
    solved = MARKET.solve(limits, _weigh)
    assert solved is not None
    near = list(MARKET.near(solved.chosen, limits, _weigh))
    assert near
    losses = [MARKET.loss(places, _weigh) for places in near]
    assert losses == pytest.approx(sorted(losses))
    assert min(losses) >= solved.loss * (1 - 1e-9)
    for places in near:
        assert MARKET.total(places)[BYTES] <= limits[BYTES]
        assert 1 <= sum(a != b for a, b in zip(places, solved.chosen, strict=True)) <= 2


def test_a_recipe_gives_every_matrix_its_option() -> None:
    """Patterns match the tensors they mean and no other; tensors that go better unguided are named."""
    solved = MARKET.solve({BYTES: 700_000.0}, _weigh)
    assert solved is not None
    recipe = MARKET.recipe(solved.chosen)
    for matrix, option in MARKET.options(solved.chosen):
        kinds = [kind for pattern, kind in recipe.overrides.items() if re.search(pattern, matrix.name)]
        assert kinds == [option.type]
        assert (matrix.name in recipe.no_imatrix) == (
            option.type != "Q8_0" and not option.imatrix and matrix.name.startswith("blk")
        )
    assert recipe.imatrix


def test_only_the_targets_types_are_chosen() -> None:
    """A type without a fast kernel there is no option, unless nothing else fits the matrix."""
    market = Market(SURVEY, MARKET.per_weight, frozenset({"Q4_K"}))
    assert {o.type for group in market.groups for o in group} == {"Q4_K"}
    assert {o.type for group in Market(SURVEY, {}, frozenset({"Q5_K"})).groups for o in group} == set(KINDS)


def test_layers_of_one_type_share_a_line() -> None:
    """All layers, some and one are written so, names are taken literally, and lines have one order."""
    types = {"token_embd.weight": "Q6_K", **{f"blk.{n}.attn_q.weight": "Q4_K" for n in range(12)}}
    types |= {f"blk.{n}.ffn_down.weight": "Q6_K" if n in {1, 10} else "Q4_K" for n in range(3)} | {
        "blk.11.ffn_down.weight": "Q6_K"
    }
    assert patterns(types) == [
        r"^token_embd\.weight$=Q6_K",
        r"^blk\.\d+\.attn_q\.weight$=Q4_K",
        r"^blk\.(0|2)\.ffn_down\.weight$=Q4_K",
        r"^blk\.(1|11)\.ffn_down\.weight$=Q6_K",
    ]
