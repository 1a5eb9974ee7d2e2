"""Quality figures from what a run found at each position, and that from logits."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalog.golden import GoldenPrompt
from pipeline.errors import StageError
from pipeline.manifest.evidence import quantile
from pipeline.stages.golden import GoldenAnswer, GoldenRun, Request, Requests
from pipeline.stages.quality import quality, rounded
from pipeline.stages.shards_run import compare, compared, log_softmax

VOCABULARY = 7
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(7, VOCABULARY)).astype(np.float32)
REQUESTS = [
    Request(id="a", prompt=[0, 1], forced=[0, 1, 2, 3], prompt_length=2, max_tokens=4),
    Request(id="b", prompt=[4, 5], forced=[4, 5, 6], prompt_length=2, max_tokens=4),
]
PROMPTS = [
    GoldenPrompt(id="a", family="f", prompt="p", expected="one", max_tokens=4),
    GoldenPrompt(id="b", family="g", prompt="p", expected="two", max_tokens=4),
]


def _run(**figures: list[list[float]]) -> GoldenRun:
    """A run whose first answer is right, with figures for both."""
    answers = [
        GoldenAnswer(id=i, tokens=[], text=text, ttft_ns=1, step_ns=[], **{k: v[at] for k, v in figures.items()})
        for at, (i, text) in enumerate((("a", "one"), ("b", "wrong")))
    ]
    return GoldenRun(vocabulary=VOCABULARY, peak_rss_bytes=0, answers=answers)


def test_a_model_against_itself_has_no_divergence(tmp_path: Path) -> None:
    """Equal logits give KL 0 and perplexity ratio 1, and exact match is the mean over families."""
    np.save(tmp_path / "logits.npy", LOGITS)
    run = compared(_run(), Requests(requests=REQUESTS), tmp_path / "logits.npy", tmp_path / "logits.npy")
    found = quality(PROMPTS, REQUESTS, run)
    assert (found.mean_kl, found.p99_kl, found.perplexity_ratio) == (0.0, 0.0, 1.0)
    assert found.exact_match == 0.5
    assert {name: f.exact_match for name, f in found.families.items()} == {"f": 1.0, "g": 0.0}


def test_logits_of_other_shape_are_not_compared(tmp_path: Path) -> None:
    """A reference over other positions is an error instead of a number."""
    np.save(tmp_path / "a.npy", LOGITS)
    np.save(tmp_path / "b.npy", LOGITS[1:])
    with pytest.raises(StageError, match="differ in shape"):
        compared(_run(), Requests(requests=REQUESTS), tmp_path / "a.npy", tmp_path / "b.npy")


def test_perplexity_is_over_the_expected_answers() -> None:
    """Prompt positions do not count in the perplexity ratio, but they do in the divergence."""
    run = _run(kl=[[0.0, 0.0, 4.0, 0.0], [3.0, 0.0, 0.0]], nll=[[9.0, 1.0, 2.0], [9.0, 3.0]],
               reference_nll=[[0.0, 1.0, 1.0], [0.0, 1.0]])  # fmt: skip
    found = quality(PROMPTS, REQUESTS, run)
    assert found.mean_kl == 1.0
    assert found.perplexity_ratio == pytest.approx(math.exp(2 - 1), rel=1e-5)
    assert found.families["f"].mean_kl == 1.0


def test_a_prompt_without_an_answer_counts_by_its_own_tokens() -> None:
    """Where no answer is forced, perplexity is over the prompt."""
    whole = [r.model_copy(update={"prompt_length": len(r.forced)}) for r in REQUESTS]
    run = _run(kl=[[0.0] * 4, [0.0] * 3], nll=[[2.0] * 3, [2.0] * 2], reference_nll=[[1.0] * 3, [1.0] * 2])
    assert quality(PROMPTS, whole, run).perplexity_ratio == pytest.approx(math.e, rel=1e-5)


def test_the_interval_of_exact_match_is_about_its_figure() -> None:
    """Families count alike in the interval too, however many prompts each has."""
    right = {"f": (81, 90), "g": (3, 10)}  # of each family's prompts
    prompts = [
        GoldenPrompt(id=f"{family}{n}", family=family, prompt="p", expected="one" if n < good else "two", max_tokens=4)
        for family, (good, count) in right.items()
        for n in range(count)
    ]
    requests = [REQUESTS[0].model_copy(update={"id": p.id}) for p in prompts]
    zeros = {"kl": [0.0] * 4, "nll": [0.0] * 3, "reference_nll": [0.0] * 3}
    answers = [GoldenAnswer(id=p.id, tokens=[], text="one", ttft_ns=1, step_ns=[], **zeros) for p in prompts]
    found = quality(prompts, requests, GoldenRun(vocabulary=VOCABULARY, peak_rss_bytes=0, answers=answers))
    assert found.exact_match == 0.6
    assert found.exact_match_interval is not None
    assert (found.exact_match_interval.low, found.exact_match_interval.high) == pytest.approx((0.45, 0.75), abs=0.03)


def test_a_run_that_compared_too_little_has_no_quality() -> None:
    """A missing position is an error instead of a better mean."""
    with pytest.raises(StageError, match="a: not every position was compared"):
        quality(PROMPTS, REQUESTS, _run(kl=[[0.0], [0.0]], nll=[[], []], reference_nll=[[], []]))


def test_kl_and_likelihood_are_those_of_the_definition() -> None:
    """One sequence's KL and likelihoods equal a direct evaluation of their sums."""
    other = RNG.normal(size=(4, VOCABULARY)).astype(np.float32)
    found = compare(other, LOGITS[:4], [0, 1, 2, 3])
    for i in range(4):
        p, q = (np.exp(x.astype(float)) / np.exp(x.astype(float)).sum() for x in (LOGITS[i], other[i]))
        assert found["kl"][i] == pytest.approx(sum(p * np.log(p / q)))
    assert found["nll"] == pytest.approx([-log_softmax(other)[i, i + 1] for i in range(3)])
    assert found["reference_nll"] == pytest.approx([-log_softmax(LOGITS)[i, i + 1] for i in range(3)])


def test_long_prompts_are_compared_in_pieces_with_the_same_result() -> None:
    """A sequence longer than one piece gives the same figures as its positions one by one."""
    length = 2500
    a, b = (RNG.normal(size=(length, 3)).astype(np.float32) for _ in range(2))
    ids = [int(i) for i in RNG.integers(0, 3, length)]
    found, la, lb = compare(a, b, ids), log_softmax(a), log_softmax(b)
    assert found["kl"] == pytest.approx((np.exp(lb) * (lb - la)).sum(-1))
    assert found["nll"] == pytest.approx([-la[i, ids[i + 1]] for i in range(length - 1)])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_quantiles_are_numpys(values: list[float], share: float) -> None:
    """Any quantile of any values is the one NumPy gives by default."""
    assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)), rel=1e-9, abs=1e-6)


@given(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=9))
def test_log_softmax_sums_to_one(row: list[float]) -> None:
    """Probabilities sum to one for any finite logits."""
    assert math.fsum(np.exp(log_softmax(np.array([row], np.float32))[0])) == pytest.approx(1.0)


def test_rounding_keeps_six_digits() -> None:
    """Figures keep six significant digits, large and small."""
    assert (rounded(1.23456789e-7), rounded(123456.789)) == (1.23457e-07, 123457.0)
