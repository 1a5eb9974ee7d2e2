"""Crossed prompts are new wordings out of known words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalog.golden import Example
from pipeline.stages.crossed import crossed
from pipeline.stages.trials import FOLDS, folded

WORDS = st.lists(st.sampled_from(["where", "find", "tea", "the", "?"]), min_size=1, max_size=6).map(" ".join)
EXAMPLES = st.lists(
    st.builds(Example, family=st.sampled_from(["a", "b"]), prompt=WORDS, answer=st.just("x")), max_size=12
)


@given(EXAMPLES, st.integers(0, 3))
def test_each_is_a_beginning_and_an_end_of_its_own_family(examples: list[Example], seed: int) -> None:
    """One for each example, repeatable; it begins as the example does and ends as one of its family does."""
    folds = folded([example.family for example in examples])
    found = crossed(examples, folds, seed)
    assert found == crossed(examples, folds, seed)
    assert len(found) == len(examples)
    for example, prompt in zip(examples, found, strict=True):
        assert prompt.split()[0] == example.prompt.split()[0]
        ends = {other.prompt.split()[-1] for other in examples if other.family == example.family}
        assert prompt.split()[-1] in ends


def test_wordings_that_no_example_has() -> None:
    """Two ways of asking give a third."""
    asked = [f"where can we find {thing}?" for thing in ("tea", "rice", "oats", "milk")]
    told = [f"locate the {thing}" for thing in ("tea", "rice", "oats", "milk")]
    examples = [Example(family="fact", prompt=p, answer="x") for pair in zip(asked, told, strict=True) for p in pair]
    one = [0] * len(examples)
    new = set(crossed(examples, one, 0)) - set(asked) - set(told)
    assert any(
        prompt.startswith("where") and "locate" in prompt
        for seed in range(4)
        for prompt in crossed(examples, one, seed)
    )
    assert len(new) > 4


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 25])
def test_no_fold_sees_words_of_another(count: int) -> None:
    """However many examples a family has, a crossed prompt is made of those of its own fold alone."""
    examples = [Example(family="a", prompt=f"{n} find {n} rice {n}", answer="x") for n in range(count)]
    folds = folded([example.family for example in examples])
    for fold, prompt in zip(folds, crossed(examples, folds, 0), strict=True):
        assert {int(word) % FOLDS for word in prompt.split() if word.isdigit()} == {fold}
