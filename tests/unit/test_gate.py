"""The gate: evidence, thresholds and the previous release in; a verdict with reasons out."""

from __future__ import annotations

import re

import pytest

from pipeline.catalog.names import VARIANTS, Channel
from pipeline.manifest.evidence import Evidence, Measurement
from pipeline.manifest.gate import gate
from pipeline.manifest.statement import Verdict
from tests.support.evidence import PARAMS, all_checks, evidence, measurement

FIRST = VARIANTS[0]


def _with_first(e: Evidence, m: Measurement) -> list[tuple[Evidence, Measurement]]:
    return [(e, m), *all_checks()[1:]]


def _decide(checks: list[tuple[Evidence, Measurement]], previous: Verdict | None = None) -> Verdict:
    return gate(checks, PARAMS, previous, 1 if previous else None)


def test_good_evidence_for_all_variants_passes() -> None:
    """Nine proven variants pass, with a row each and the channels the policy allows."""
    verdict = _decide(all_checks())
    assert verdict.passed
    assert not verdict.reasons
    assert len(verdict.rows) == 9
    assert Channel.DEV in verdict.channels


def test_the_order_of_evidence_does_not_matter() -> None:
    """The verdict's bytes are the same whatever order the checks came in."""
    assert _decide(all_checks()[::-1]).encode() == _decide(all_checks()).encode()


def test_a_variant_without_evidence_is_named() -> None:
    """A missing check is a reason, and no channel is allowed."""
    verdict = _decide(all_checks()[1:])
    assert verdict.reasons == [f"{FIRST}: there is no evidence"]
    assert not verdict.passed
    assert not verdict.channels


def test_two_different_runs_are_a_reason() -> None:
    """Evidence of a run that did not repeat fails the gate."""
    flaky = evidence(FIRST).model_copy(update={"deterministic": False})
    assert _decide(_with_first(flaky, measurement(FIRST))).reasons == [
        f"{FIRST} on host: two runs gave different tokens"
    ]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        pytest.param({"exact_match": 0.1}, r"exact match is 0\.1, below 0\.9", id="exact match"),
        pytest.param({"mean_kl": 9.0}, r"mean KL is 9, above 0\.05", id="mean KL"),
        pytest.param({"size": 10**9}, r"size \(bytes\) is 1e\+09, above 4e\+06", id="size"),
    ],
)
def test_limits(changed: dict[str, float], says: str) -> None:
    """Each absolute limit names figure, value and limit."""
    reasons = _decide(_with_first(evidence(FIRST, **changed), measurement(FIRST))).reasons  # type: ignore[arg-type]
    assert any(re.search(says, r) for r in reasons), reasons


def test_a_slow_variant_is_refused() -> None:
    """Latency limits hold for the first token and for later ones, and dear inference fails the cost limit."""
    reasons = " | ".join(_decide(_with_first(evidence(FIRST), measurement(FIRST, token_ms=10_000_000))).reasons)
    assert "p95 time to first token" in reasons
    assert "p95 time per token" in reasons
    assert "cost per 1,000" in reasons


@pytest.mark.parametrize(
    ("before", "says"),
    [
        pytest.param((evidence(FIRST, mean_kl=4e-4), measurement(FIRST)), "mean KL against the previous", id="quality"),
        pytest.param(
            (evidence(FIRST, size=800_000), measurement(FIRST)), "size (bytes) against the previous", id="size"
        ),
        pytest.param((evidence(FIRST), measurement(FIRST, token_ms=0.1)), "time per token (ms) against", id="latency"),
        pytest.param((evidence(FIRST), measurement(FIRST, token_ms=0.1)), "cost per 1,000 (USD) against", id="cost"),
    ],
)
def test_regressions(before: tuple[Evidence, Measurement], says: str) -> None:
    """What became worse than the previous release allows is a reason."""
    previous = _decide(_with_first(*before))
    assert previous.passed
    verdict = _decide(all_checks(), previous)
    assert any(says in reason for reason in verdict.reasons), verdict.reasons
    assert verdict.previous_version == 1


def test_a_drop_of_exact_match_is_a_regression() -> None:
    """Exact match may drop by no more than the threshold, even above the absolute minimum."""
    verdict = _decide(_with_first(evidence(FIRST, exact_match=0.95), measurement(FIRST)), _decide(all_checks()))
    assert any("exact match against the previous release is 0.95, below 0.98" in r for r in verdict.reasons)


def test_other_machines_do_not_compare_clocks() -> None:
    """Wall-clock figures of another kind of machine are no regression."""
    previous = _decide(_with_first(evidence(FIRST), measurement(FIRST, token_ms=0.1, cpu="a faster one")))
    assert _decide(all_checks(), previous).passed


def test_noise_around_zero_is_no_regression() -> None:
    """A KL below the noise of kernels does not fail against a smaller one."""
    previous = _decide(_with_first(evidence(FIRST, mean_kl=0.0), measurement(FIRST)))
    assert _decide(_with_first(evidence(FIRST, mean_kl=5e-5), measurement(FIRST)), previous).passed


def test_equal_figures_pass_against_themselves() -> None:
    """A release is no regression against itself."""
    assert _decide(all_checks(), _decide(all_checks())).passed
