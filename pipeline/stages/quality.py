"""Quality figures of a run: pure functions over what it found at each position.

Rules: KL(reference || variant) in nats over every position of prompt and expected answer; figures are rounded to six
significant digits, below which the order of additions on another CPU would show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from math import exp
from random import Random
from statistics import fmean
from typing import TypeVar

from pipeline.catalog.golden import GoldenPrompt
from pipeline.errors import StageError
from pipeline.manifest.evidence import Family, Interval, Quality, quantile
from pipeline.stages.golden import GoldenAnswer, GoldenRun, Request

RESAMPLES = 1000

R = TypeVar("R")


def quality(prompts: Sequence[GoldenPrompt], requests: Sequence[Request], run: GoldenRun) -> Quality:
    """Return the quality of a run that was compared with the unquantized tier's logits.

    Raises:
        StageError: the run did not compare every position.
    """
    rows = list(zip(prompts, requests, run.answers, strict=True))
    for _, request, answer in rows:
        if len(answer.kl) != len(request.forced) or len(answer.nll) != len(answer.reference_nll):
            raise StageError(f"{answer.id}: not every position was compared", hint="dvc repro")
    passed = {p.id: p.accepts(a.text) for p, _, a in rows}
    families = {}
    for family in sorted({p.family for p in prompts}):
        own = [(r, a) for p, r, a in rows if p.family == family]
        families[family] = Family(
            prompts=len(own),
            exact_match=rounded(fmean(passed[a.id] for _, a in own)),
            mean_kl=_ratio(_sums(own)),
            answer_kl=_ratio(_answer_sums(own)),
            mean_kl_interval=interval(_sums(own)),
            p99_kl=_p99(own),
            perplexity_ratio=_perplexity_ratio(own),
        )
    every = [(r, a) for _, r, a in rows]
    return Quality(
        exact_match=rounded(fmean(f.exact_match for f in families.values())),
        mean_kl=_ratio(_sums(every)),
        p99_kl=_p99(every),
        perplexity_ratio=_perplexity_ratio(every),
        families=families,
        answer_kl=_ratio(_answer_sums(every)),
        mean_kl_interval=interval(_sums(every)),
        exact_match_interval=interval(*_shares(prompts, passed)),
    )


def rounded(value: float) -> float:
    """Return `value` with six significant digits."""
    return float(f"{value:.6g}")


def interval(*groups: Sequence[tuple[float, float]]) -> Interval:
    """Return the 95 % interval of a mean from each prompt's sum and count, prompts drawn anew within each group.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13 (percentiles).
    """
    low, high = bootstrap(groups, _ratio)
    return Interval(low=rounded(low), high=rounded(high))


def bootstrap(
    groups: Sequence[Sequence[R]], figure: Callable[[Sequence[R]], float], resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return where 95 % of a figure's values lie over rows drawn anew within each group; always the same draws."""
    draw = Random(0)  # noqa: S311 - statistics
    values = [figure([row for rows in groups for row in draw.choices(rows, k=len(rows))]) for _ in range(resamples)]
    return quantile(values, 0.025), quantile(values, 0.975)


def _p99(rows: Iterable[tuple[Request, GoldenAnswer]]) -> float:
    return rounded(max(0.0, quantile([kl for _, answer in rows for kl in answer.kl], 0.99)))


def _perplexity_ratio(rows: Sequence[tuple[Request, GoldenAnswer]]) -> float:
    nll = fmean(chain.from_iterable(_answer_part(r, a.nll) for r, a in rows))
    reference_nll = fmean(chain.from_iterable(_answer_part(r, a.reference_nll) for r, a in rows))
    return rounded(exp(nll - reference_nll))


def _shares(prompts: Sequence[GoldenPrompt], passed: Mapping[str, bool]) -> list[list[tuple[float, float]]]:
    """Each family's prompts, weighted so that every family counts alike."""
    sizes = Counter(prompt.family for prompt in prompts)
    return [
        [(passed[p.id] / sizes[family], 1 / sizes[family]) for p in prompts if p.family == family]
        for family in sorted(sizes)
    ]


def _ratio(sums: Iterable[tuple[float, float]]) -> float:
    values, counts = zip(*sums, strict=True)
    return rounded(max(0.0, sum(values) / max(1, sum(counts))))


def _sums(rows: Iterable[tuple[Request, GoldenAnswer]]) -> list[tuple[float, float]]:
    return [(sum(answer.kl), len(answer.kl)) for _, answer in rows]


def _answer_sums(rows: Iterable[tuple[Request, GoldenAnswer]]) -> list[tuple[float, float]]:
    parts = [list(_answer_part(request, answer.kl)) for request, answer in rows]
    return [(sum(part), len(part)) for part in parts]


def _answer_part(request: Request, values: Sequence[float]) -> Sequence[float]:
    # Without an answer all of the prompt's count.
    return values[request.answer_start :] or values
