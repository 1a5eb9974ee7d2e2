"""When two targets agree on a file, and what an emulator's counts mean."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.catalog.names import Target
from pipeline.catalog.params import Certificate
from pipeline.errors import ToolError
from pipeline.ports.qemu import CPUS, Emulator
from pipeline.stages.certify import agreement
from pipeline.stages.check_gguf import PASSES, instructions
from pipeline.stages.golden import GoldenAnswer, GoldenRun, Request, Requests

BOUNDS = Certificate(margin_max=0.05, mean_kl_max=1e-3)
QEMU = Emulator(Target.ARM64, "/usr/bin/qemu-aarch64", "7.2.22")


def _run(tokens: list[int], **answer: Any) -> GoldenRun:
    return GoldenRun(
        vocabulary=9,
        peak_rss_bytes=0,
        answers=[GoldenAnswer(id="p", tokens=tokens, text="", ttft_ns=1, step_ns=[], **answer)],
    )


REFERENCE = _run([1, 2, 3], margins=[5.0, 0.04, 4.0, 2.0])


@pytest.mark.parametrize(
    ("tokens", "kl", "holds", "differences"),
    [
        pytest.param([1, 2, 3], [0.0, 5e-4], True, [], id="equal"),
        pytest.param([1, 4, 5], [0.0], True, [("p", 1, 0.04)], id="a near tie"),
        pytest.param([1, 2, 8], [0.0], False, [("p", 2, 4.0)], id="no tie"),
        pytest.param([1, 2], [0.0], False, [("p", 2, 4.0)], id="ended early"),
        pytest.param([1, 2, 3, 4], [0.0], False, [("p", 3, 2.0)], id="went on"),
        pytest.param([1, 2, 3], [0.0, 3e-3], False, [], id="logits too far"),
        pytest.param([1, 2, 3], [0.0, 0.0, 2e-3], True, [], id="one position far off"),
        pytest.param([1, 2, 3], [-1e-12], True, [], id="rounding below zero"),
    ],
)
def test_agreement(tokens: list[int], kl: list[float], holds: bool, differences: list[tuple[str, int, float]]) -> None:
    """Tokens are equal or part at a near tie of the reference, and logits are close in the mean."""
    found = agreement(Target.ARM64, "qemu", REFERENCE, _run(tokens, kl=kl), BOUNDS)
    assert found.holds is holds
    assert [(d.id, d.position, d.margin) for d in found.differences] == differences
    assert found.max_kl == max(0.0, *kl)
    assert found.mean_kl == pytest.approx(max(0.0, sum(kl) / len(kl)), rel=1e-5)


def test_a_difference_past_the_references_last_decision_is_no_tie() -> None:
    """Where the reference stopped for want of room there is no margin, so nothing excuses a difference."""
    found = agreement(Target.ARM64, None, _run([1, 2], margins=[1.0, 1.0]), _run([1, 2, 3], kl=[0.0]), BOUNDS)
    assert not found.holds
    assert found.differences[0].position == 2


def _asked() -> Requests:
    row = {"forced": [], "prompt_length": 0, "max_tokens": 9}
    return Requests(requests=[Request(id="a", prompt=[1, 2, 3], **row), Request(id="b", prompt=[4, 5], **row)])


def _counted(lines: list[int]) -> Any:
    answers = [
        GoldenAnswer(id=i, tokens=[], text="", ttft_ns=1, step_ns=[], margins=[0.0] * n)
        for i, n in (("a", 3), ("b", 1))
    ]
    found = GoldenRun(vocabulary=9, peak_rss_bytes=0, answers=answers)
    return instructions("\n".join(map(str, lines)), _asked(), found, QEMU)


def test_counts_are_told_apart_by_what_was_decoded() -> None:
    """Each prompt's first decode is the prompt, all others are one token; further passes do not count."""
    found = _counted([300, 10, 12, 200, *[7] * 4])
    assert (found.prompt, found.prompt_tokens, found.generated, found.steps) == (500, 5, 22, 2)
    assert found.per_token == 11.0
    assert (found.emulator, found.cpu) == ("qemu-aarch64 7.2.22", CPUS[Target.ARM64])


def test_a_count_that_is_missing_is_an_error() -> None:
    """As many intervals are expected as there were decodes, in all passes."""
    with pytest.raises(ToolError, match=f"counted 7 decodes of {PASSES * 4}"):
        _counted([1] * 7)
