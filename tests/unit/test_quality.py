"""Quality figures from logits and token ids."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalog.golden import GoldenPrompt
from pipeline.errors import StageError
from pipeline.stages.golden import Decoded, GoldenAnswer, GoldenRun
from pipeline.stages.quality import compare, log_softmax, quality, rounded

VOCABULARY = 7
RNG = np.random.default_rng(0)


def _answer(name: str, text: str, forced: list[int], prompt_length: int) -> GoldenAnswer:
    return GoldenAnswer(
        id=name, tokens=[], text=text, ttft_ns=1, step_ns=[], forced=forced, prompt_length=prompt_length
    )


def _decoded(answers: list[GoldenAnswer], logits: np.ndarray | None) -> Decoded:
    return Decoded(GoldenRun(engine={}, peak_rss_bytes=0, answers=answers), logits)


ANSWERS = [_answer("a", "one", [0, 1, 2, 3], 2), _answer("b", "wrong", [4, 5, 6], 2)]
PROMPTS = [
    GoldenPrompt(id="a", family="f", prompt="p", expected="one", max_tokens=4),
    GoldenPrompt(id="b", family="g", prompt="p", expected="two", max_tokens=4),
]
LOGITS = RNG.normal(size=(7, VOCABULARY)).astype(np.float32)


def test_a_model_against_itself_has_no_divergence() -> None:
    """Equal logits give KL 0 and perplexity ratio 1, and exact match is the mean over families."""
    found = quality(PROMPTS, _decoded(ANSWERS, LOGITS), _decoded(ANSWERS, LOGITS))
    assert (found.mean_kl, found.p99_kl, found.perplexity_ratio) == (0.0, 0.0, 1.0)
    assert found.exact_match == 0.5
    assert {name: f.exact_match for name, f in found.families.items()} == {"f": 1.0, "g": 0.0}


def test_kl_and_likelihood_are_those_of_the_definition() -> None:
    """One prompt's KL and answer likelihoods equal a direct evaluation of their sums."""
    other = RNG.normal(size=(4, VOCABULARY)).astype(np.float32)
    found = compare(other, LOGITS[:4], ANSWERS[0])
    for i in range(4):
        p, q = (np.exp(x.astype(float)) / np.exp(x.astype(float)).sum() for x in (LOGITS[i], other[i]))
        assert found.kl[i] == pytest.approx(sum(p * np.log(p / q)))
    assert found.nll == pytest.approx([-log_softmax(other)[1, 2], -log_softmax(other)[2, 3]])
    assert found.reference_nll == pytest.approx([-log_softmax(LOGITS)[1, 2], -log_softmax(LOGITS)[2, 3]])


def test_long_prompts_are_compared_in_pieces_with_the_same_result() -> None:
    """A prompt longer than one piece gives the same figures as its positions one by one."""
    length = 2500
    a, b = (RNG.normal(size=(length, 3)).astype(np.float32) for _ in range(2))
    answer = _answer("a", "", [int(i) for i in RNG.integers(0, 3, length)], 10)
    found = compare(a, b, answer)
    la, lb = log_softmax(a), log_softmax(b)
    assert found.kl == pytest.approx((np.exp(lb) * (lb - la)).sum(-1))
    assert found.nll == pytest.approx([-la[i, answer.forced[i + 1]] for i in range(9, length - 1)])


def test_runs_over_other_tokens_are_not_compared() -> None:
    """A reference that tokenizes differently, or has no logits, is an error instead of a number."""
    other = [ANSWERS[0].model_copy(update={"forced": [0, 1, 2, 4]}), ANSWERS[1]]
    with pytest.raises(StageError, match="a: the variant and the reference tokenize it differently"):
        quality(PROMPTS, _decoded(ANSWERS, LOGITS), _decoded(other, LOGITS))
    with pytest.raises(StageError, match="differ in shape"):
        quality(PROMPTS, _decoded(ANSWERS, LOGITS), _decoded(ANSWERS, None))


def test_a_prompt_without_an_answer_counts_by_its_own_tokens() -> None:
    """Where no answer is forced, perplexity is over the prompt."""
    answer = _answer("a", "", [0, 1, 2, 3], 4)
    assert len(compare(LOGITS[:4], LOGITS[:4], answer).nll) == 3


@given(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=9))
def test_log_softmax_sums_to_one(row: list[float]) -> None:
    """Probabilities sum to one for any finite logits."""
    assert math.fsum(np.exp(log_softmax(np.array([row], np.float32))[0])) == pytest.approx(1.0)


def test_rounding_keeps_six_digits() -> None:
    """Figures keep six significant digits, large and small."""
    assert (rounded(1.23456789e-7), rounded(123456.789)) == (1.23457e-07, 123457.0)
