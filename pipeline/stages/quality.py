"""Quality figures from token ids and logits: pure functions over arrays.

Rules: KL(reference || variant) in nats over every position of prompt and expected answer; figures are rounded to six
significant digits, below which the order of additions on another CPU would show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.catalog.golden import GoldenPrompt
from pipeline.errors import StageError
from pipeline.manifest.evidence import Family, Quality
from pipeline.stages.golden import Decoded, GoldenAnswer

Logits = NDArray[np.float32]
_ROWS = 1024  # positions compared at a time: bounds memory at large vocabularies


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Return log-probabilities of [positions, vocabulary] logits in double precision."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


@dataclass(frozen=True)
class Compared:
    """One prompt: KL in nats [positions], and the negative log-likelihood of each answer token under both models."""

    kl: NDArray[np.float64]
    nll: NDArray[np.float64]
    reference_nll: NDArray[np.float64]


def compare(variant: Logits, reference: Logits, answer: GoldenAnswer) -> Compared:
    """Return one prompt's figures; both logits are [len(answer.forced), vocabulary]."""
    kl, nll, reference_nll = [], [], []
    ids = np.asarray(answer.forced)
    for start in range(0, len(ids), _ROWS):
        a, b = log_softmax(variant[start : start + _ROWS]), log_softmax(reference[start : start + _ROWS])
        kl.append((np.exp(b) * (b - a)).sum(axis=-1))
        targets = ids[start + 1 : start + 1 + len(a)]
        rows = np.arange(len(targets))
        nll.append(-a[rows, targets])
        reference_nll.append(-b[rows, targets])
    # The position that predicts the answer's first token; without an answer all of the prompt's count.
    first = answer.prompt_length - 1 if answer.prompt_length < len(ids) else 0
    return Compared(np.concatenate(kl), np.concatenate(nll)[first:], np.concatenate(reference_nll)[first:])


def quality(prompts: Sequence[GoldenPrompt], variant: Decoded, reference: Decoded) -> Quality:
    """Return the quality of a variant's run against the unquantized tier's.

    Raises:
        StageError: the two runs are not over the same tokens, so that their logits cannot be compared.
    """
    compared = _compare_all(variant, reference)
    passed = [p.accepts(a.text) for p, a in zip(prompts, variant.run.answers, strict=True)]
    families = {
        family: Family(
            prompts=sum(p.family == family for p in prompts),
            exact_match=rounded(np.mean([ok for p, ok in zip(prompts, passed, strict=True) if p.family == family])),
            mean_kl=_mean_kl([c for p, c in zip(prompts, compared, strict=True) if p.family == family]),
        )
        for family in sorted({p.family for p in prompts})
    }
    nll, reference_nll = (
        float(np.concatenate([getattr(c, name) for c in compared]).mean()) for name in ("nll", "reference_nll")
    )
    return Quality(
        exact_match=rounded(np.mean([f.exact_match for f in families.values()])),
        mean_kl=_mean_kl(compared),
        p99_kl=rounded(max(0.0, float(np.quantile(np.concatenate([c.kl for c in compared]), 0.99)))),
        perplexity_ratio=rounded(np.exp(nll - reference_nll)),
        families=families,
    )


def _compare_all(variant: Decoded, reference: Decoded) -> list[Compared]:
    if variant.logits is None or reference.logits is None or variant.logits.shape != reference.logits.shape:
        raise StageError(
            "the variant's and the reference's logits differ in shape", hint="rebuild both from one teacher"
        )
    found, start = [], 0
    for ours, theirs in zip(variant.run.answers, reference.run.answers, strict=True):
        if ours.forced != theirs.forced:
            raise StageError(
                f"{ours.id}: the variant and the reference tokenize it differently",
                hint="convert with the tokenizer's own pre-tokenizer (models/*.yaml: convert.pre_tokenizer)",
            )
        end = start + len(ours.forced)
        found.append(compare(variant.logits[start:end], reference.logits[start:end], ours))
        start = end
    return found


def _mean_kl(compared: Sequence[Compared]) -> float:
    return rounded(max(0.0, float(np.concatenate([c.kl for c in compared]).mean())))


def rounded(value: float | np.floating) -> float:
    """Return `value` with six significant digits."""
    return float(f"{float(value):.6g}")
