"""The gate: evidence, thresholds and the previous release in; a verdict with reasons out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.catalog.names import GGUF_TIERS, VARIANTS, Channel, RunnerClass, Target, Variant
from pipeline.manifest.evidence import Agreement, Certificate, Evidence, File, Measurement
from pipeline.manifest.gate import Check, Proof, gate
from pipeline.manifest.statement import Verdict
from tests.support.evidence import PARAMS, check, evidence, host_checks, measurement

FIRST = VARIANTS[0]


def _with_first(e: Evidence, m: Measurement | None = None) -> list[Check]:
    return [check(e, m), *host_checks()[1:]]


def _decide(checks: Sequence[Check], previous: Verdict | None = None, **proof: Any) -> Verdict:
    return gate(Proof(checks, **proof), PARAMS, previous, 1 if previous else None)


def test_good_evidence_for_all_variants_passes() -> None:
    """Nine proven variants pass, with a row each and the channels the policy allows."""
    verdict = _decide(host_checks())
    assert verdict.passed
    assert not verdict.reasons
    assert len(verdict.rows) == 9
    assert Channel.DEV in verdict.channels


def test_the_order_of_evidence_does_not_matter() -> None:
    """The verdict's bytes are the same whatever order the checks came in."""
    assert _decide(host_checks()[::-1]).encode() == _decide(host_checks()).encode()


def test_a_variant_without_evidence_is_named() -> None:
    """A missing check is a reason, and no channel is allowed."""
    verdict = _decide(host_checks()[1:])
    assert verdict.reasons == [f"{FIRST}: there is no evidence"]
    assert not verdict.passed
    assert not verdict.channels


MODEL = File(name="model.gguf", size=1, sha256="a" * 64)


@pytest.mark.parametrize(
    ("changed", "strays"),
    [
        pytest.param({"files": [MODEL.model_copy(update={"sha256": "b" * 64})]}, "other files", id="another file"),
        pytest.param({"files": [MODEL, MODEL.model_copy(update={"name": "x"})]}, "other files", id="a file more"),
        pytest.param({"files": []}, "other files", id="a file less"),
        pytest.param({"golden_sha256": "1" * 64}, "other golden prompts", id="other prompts"),
    ],
)
def test_a_boards_evidence_of_the_last_release_opens_no_channel(changed: dict[str, Any], strays: str) -> None:
    """What was checked on a board before the files or the golden prompts changed is a reason that says what to do."""
    host = [check(c.evidence.model_copy(update={"files": [MODEL]}), c.measurement) for c in host_checks()]
    others = [*_emulated(), *_on(RunnerClass.PI5, PI), *_on(RunnerClass.NVLINK, LARGE)]
    boards = [check(c.evidence.model_copy(update={"files": [MODEL]}), c.measurement) for c in others]
    assert Channel.STABLE in _decide([*host, *boards]).channels
    (old,) = (c for c in boards if (c.evidence.variant, c.evidence.runner) == (ARM.name, RunnerClass.PI5))
    kept = [c for c in boards if c is not old]
    verdict = _decide([*host, *kept, check(old.evidence.model_copy(update=changed), old.measurement)])
    assert verdict.reasons == [
        f"{ARM} on pi5: its evidence is of {strays} than are released: check it there again, or remove it"
    ]
    assert (verdict.passed, verdict.channels) == (False, [])


def test_a_board_alone_does_not_say_what_is_released() -> None:
    """A variant that the host has not checked is refused, whatever a board found."""
    verdict = _decide([*host_checks()[1:], *_on(RunnerClass.PI5, [FIRST])])
    assert verdict.reasons == [f"{FIRST} on pi5: there is no check on host to tell the released files by: make it"]


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
    verdict = _decide(host_checks(), previous)
    assert any(says in reason for reason in verdict.reasons), verdict.reasons
    assert verdict.previous_version == 1


def test_a_drop_of_exact_match_is_a_regression() -> None:
    """Exact match may drop by no more than the threshold, even above the absolute minimum."""
    verdict = _decide(_with_first(evidence(FIRST, exact_match=0.95), measurement(FIRST)), _decide(host_checks()))
    assert any("exact match against the previous release is 0.95, below 0.98" in r for r in verdict.reasons)


def test_other_machines_do_not_compare_clocks() -> None:
    """Wall-clock figures of another kind of machine are no regression."""
    previous = _decide(_with_first(evidence(FIRST), measurement(FIRST, token_ms=0.1, cpu="a faster one")))
    assert _decide(host_checks(), previous).passed


def test_noise_around_zero_is_no_regression() -> None:
    """A KL below the noise of kernels does not fail against a smaller one."""
    previous = _decide(_with_first(evidence(FIRST, mean_kl=0.0), measurement(FIRST)))
    assert _decide(_with_first(evidence(FIRST, mean_kl=5e-5), measurement(FIRST)), previous).passed


def test_equal_figures_pass_against_themselves() -> None:
    """A release is no regression against itself."""
    assert _decide(host_checks(), _decide(host_checks())).passed


ARM = Variant(GGUF_TIERS[0], Target.ARM64)
EMULATED = [v for v in VARIANTS if v.tier in GGUF_TIERS and v.target is not Target.X86_64]
BOARDS = {Target.ARM64: RunnerClass.PI5, Target.RISCV64: RunnerClass.RISCV}


def _emulated() -> list[Check]:
    return [check(evidence(v, runner=RunnerClass.EMULATED, per_token=1000)) for v in EMULATED]


def _on(runner: RunnerClass, variants: Sequence[Variant], **update: Any) -> list[Check]:
    found = (evidence(v, runner=runner).model_copy(update=update) for v in variants)
    return [check(e, measurement(Variant.parse(e.variant), runner=runner)) for e in found]


PI = [v for v in VARIANTS if v.tier in GGUF_TIERS and v.target is Target.ARM64]
LARGE = [v for v in VARIANTS if v.tier not in GGUF_TIERS]


@pytest.mark.parametrize(
    ("more", "channels"),
    [
        pytest.param([], [Channel.DEV], id="host alone"),
        pytest.param(_emulated(), [Channel.DEV, Channel.CANARY], id="emulated"),
        pytest.param(
            [*_emulated(), *_on(RunnerClass.PI5, PI), *_on(RunnerClass.NVLINK, LARGE)], list(Channel), id="own hardware"
        ),
        pytest.param(
            [*_emulated(), *_on(RunnerClass.PI5, PI), *_on(RunnerClass.NVLINK, LARGE, stand_in="gloo on 2 CPU ranks")],
            [Channel.DEV, Channel.CANARY],
            id="a stand-in is no proof",
        ),
        pytest.param(
            [*_emulated(), *_on(RunnerClass.PI5, PI[:1]), *_on(RunnerClass.NVLINK, LARGE)],
            [Channel.DEV, Channel.CANARY],
            id="one variant unproven",
        ),
    ],
)
def test_channels_need_evidence_of_the_right_machines(more: list[Check], channels: list[Channel]) -> None:
    """dev takes the host's word, canary an emulator's, stable that of a real Pi 5 and of real NVLink."""
    assert _decide([*host_checks(), *more]).channels == channels


def test_a_throttled_run_opens_no_channel() -> None:
    """A board that was held back proves nothing, though its figures are kept."""
    slow = [Check(c.evidence, c.measurement.model_copy(update={"throttled": ["throttled"]}))  # type: ignore[union-attr]
            for c in _on(RunnerClass.PI5, PI)]  # fmt: skip
    verdict = _decide([*host_checks(), *_emulated(), *slow, *_on(RunnerClass.NVLINK, LARGE)])
    assert (verdict.passed, Channel.STABLE in verdict.channels) == (True, False)


def test_more_instructions_a_token_are_a_regression_within_a_format() -> None:
    """A count above the threshold fails where the format is the same, and is not compared where it changed."""
    before = _decide([*host_checks(), *_emulated()])
    slower = check(evidence(ARM, runner=RunnerClass.EMULATED, per_token=1021))
    said = "instructions per token against the previous release is 1021, above 1020"
    assert any(said in reason for reason in _decide([*host_checks(), slower], before).reasons)
    other = Check(slower.evidence, None, "Q4_K_M")
    assert _decide([*host_checks(), other], before).passed
    assert _decide([*host_checks(), check(evidence(ARM, runner=RunnerClass.EMULATED, per_token=1020))], before).passed


def test_an_emulators_few_prompts_do_not_judge_exact_match() -> None:
    """Two wrong answers of ten are no tier's exact match; the host asked all."""
    few = check(evidence(ARM, runner=RunnerClass.EMULATED, exact_match=0.1))
    assert _decide([*host_checks(), few]).passed


def test_targets_that_part_fail_the_gate() -> None:
    """A certificate that does not hold is a reason; one with a missing emulator is none."""
    parted = Agreement(target=Target.ARM64, mean_kl=0.1, max_kl=0.5, differences=[], holds=False)
    certificate = Certificate(
        model_sha256="a" * 64,
        reference=Target.X86_64,
        prompts=["p"],
        margin_max=0.05,
        mean_kl_max=1e-3,
        targets=[parted],
    )
    reasons = _decide(host_checks(), certificates=[certificate]).reasons
    assert reasons == ["model aaaaaaaaaaaa on arm64: tokens or logits part from x86_64's (mean KL 0.1, 0 differences)"]
    missing = certificate.model_copy(update={"targets": [], "missing": {Target.ARM64: "no emulator"}})
    assert _decide(host_checks(), certificates=[missing]).passed


TUNED = Variant(ARM.tier, ARM.target, "f")


def _tuned(*, runner: RunnerClass = RunnerClass.HOST, family: str = "f", **figures: float) -> Check:
    """A check of a variant tuned to family `f`, the worst on all others."""
    found = evidence(TUNED, runner=runner)
    own = found.quality.families["f"].model_copy(update={"mean_kl": 5e-4, "p99_kl": 5e-4, **figures})
    quality = found.quality.model_copy(
        update={"exact_match": 0.0, "mean_kl": 9.0, "p99_kl": 99.0, "families": {family: own}}
    )
    return check(
        found.model_copy(update={"quality": quality}), measurement(TUNED) if runner is RunnerClass.HOST else None
    )


def test_a_tuned_variant_is_judged_by_its_familys_prompts() -> None:
    """What it does to other families is no reason; its row has its family's figures."""
    verdict = _decide([*host_checks(), _tuned()], variants=[*VARIANTS, TUNED])
    assert verdict.passed
    (row,) = (r for r in verdict.rows if r.variant == TUNED.name)
    assert (row.exact_match, row.mean_kl, row.p99_kl) == (1.0, 5e-4, 5e-4)


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        pytest.param(
            {"mean_kl": 1e-3}, f"{TUNED} on host: mean KL on its family is 0.001, not below {ARM}'s 0.001", id="KL"
        ),
        pytest.param(
            {"exact_match": 0.95}, f"{TUNED} on host: exact match on its family is 0.95, below {ARM}'s 1", id="answers"
        ),
        pytest.param({"mean_kl": 0.06}, f"{TUNED} on host: mean KL is 0.06, above 0.05", id="its tier's limit"),
        pytest.param({"p99_kl": 99.0}, f"{TUNED} on host: p99 KL is 99, above 1", id="p99"),
        pytest.param(
            {"family": "g"}, f"{TUNED} on host: no golden prompts of family f to compare it with {ARM} by", id="unasked"
        ),
    ],
)
def test_a_tuned_variant_must_be_worth_it(figures: dict[str, Any], says: str) -> None:
    """One that is no better on its family's golden prompts than the variant for all prompts is refused."""
    assert any(says in reason for reason in _decide([*host_checks(), _tuned(**figures)]).reasons)


def test_an_emulators_few_prompts_do_not_say_whether_tuning_pays() -> None:
    """Under an emulator a tuned variant keeps its tier's limits and is compared with nothing."""
    emulated = _tuned(runner=RunnerClass.EMULATED, mean_kl=1e-3)
    assert _decide([*host_checks(), _tuned(), *_emulated(), emulated], variants=[*VARIANTS, TUNED]).passed


def test_a_tuned_variant_needs_proof_as_its_kin_do() -> None:
    """Without evidence it is refused; unproven where a channel asks for proof, it keeps that channel shut."""
    variants = [*VARIANTS, TUNED]
    assert _decide(host_checks(), variants=variants).reasons == [f"{TUNED}: there is no evidence"]
    shut = _decide([*host_checks(), _tuned(), *_emulated()], variants=variants)
    assert (shut.passed, shut.channels) == (True, [Channel.DEV])


def test_a_tuned_variant_may_come_and_go() -> None:
    """It is compared with the previous release by its name; where it is gone, nothing became worse."""
    with_it = _decide([*host_checks(), _tuned(mean_kl=2e-4)], variants=[*VARIANTS, TUNED])
    assert _decide(host_checks(), with_it).passed
    worse = _decide([*host_checks(), _tuned(mean_kl=9e-4)], with_it, variants=[*VARIANTS, TUNED])
    assert any(f"{TUNED} on host: mean KL against the previous release" in reason for reason in worse.reasons)


def test_evidence_that_does_not_count_is_a_reason() -> None:
    """What is wrong with a board's signature stops the release instead of being left out."""
    verdict = _decide(host_checks(), objections=["tiny-edge-arm64 on pi5: not signed"])
    assert (verdict.passed, verdict.reasons) == (False, ["tiny-edge-arm64 on pi5: not signed"])


def test_measured_joules_decide_the_cost() -> None:
    """Energy is what the board measured, where it could; the device's share is by time."""
    cost = PARAMS.costs[RunnerClass.HOST]
    share = 1000 * cost.device_usd * 1e-3 / (cost.life_hours * 3600)
    measured = measurement(FIRST).model_copy(update={"joules_per_inference": 3.6})
    (found,) = (r for r in _decide(_with_first(evidence(FIRST), measured)).rows if r.variant == FIRST.name)
    assert found.cost_per_1k_usd == pytest.approx(share + 1000 * 3.6 * cost.usd_per_kwh / 3.6e6)
