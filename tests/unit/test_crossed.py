"""Crossed prompts are new wordings out of known words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalog.golden import Example
from pipeline.stages.crossed import crossed

WORDS = st.lists(st.sampled_from(["where", "find", "tea", "the", "?"]), min_size=1, max_size=6).map(" ".join)
EXAMPLES = st.lists(
    st.builds(Example, family=st.sampled_from(["a", "b"]), prompt=WORDS, answer=st.just("x")), max_size=12
)


@given(EXAMPLES, st.integers(0, 3))
def test_each_is_a_beginning_and_an_end_of_its_own_family(examples: list[Example], seed: int) -> None:
    """One for each example, repeatable; it begins as the example does and ends as one of its family does."""
    found = crossed(examples, seed, apart=2)
    assert found == crossed(examples, seed, apart=2)
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
    new = set(crossed(examples, 0, apart=1)) - set(asked) - set(told)
    assert any(
        prompt.startswith("where") and "locate" in prompt
        for seed in range(4)
        for prompt in crossed(examples, seed, apart=1)
    )
    assert len(new) > 4
