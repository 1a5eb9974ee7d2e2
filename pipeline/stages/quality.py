"""Quality figures of a run: pure functions over what it found at each position.

Rules: KL(reference || variant) in nats over every position of prompt and expected answer; figures are rounded to six
significant digits, below which the order of additions on another CPU would show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from math import exp
from statistics import fmean

from pipeline.catalog.golden import GoldenPrompt
from pipeline.errors import StageError
from pipeline.manifest.evidence import Family, Quality, quantile
from pipeline.stages.golden import GoldenAnswer, GoldenRun, Request


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
    families = {
        family: Family(
            prompts=sum(p.family == family for p in prompts),
            exact_match=rounded(fmean(passed[p.id] for p in prompts if p.family == family)),
            mean_kl=_mean_kl(a for p, _, a in rows if p.family == family),
        )
        for family in sorted({p.family for p in prompts})
    }
    nll = fmean(chain.from_iterable(_answer_part(r, a.nll) for _, r, a in rows))
    reference_nll = fmean(chain.from_iterable(_answer_part(r, a.reference_nll) for _, r, a in rows))
    return Quality(
        exact_match=rounded(fmean(f.exact_match for f in families.values())),
        mean_kl=_mean_kl(run.answers),
        p99_kl=rounded(max(0.0, quantile([kl for a in run.answers for kl in a.kl], 0.99))),
        perplexity_ratio=rounded(exp(nll - reference_nll)),
        families=families,
    )


def rounded(value: float) -> float:
    """Return `value` with six significant digits."""
    return float(f"{value:.6g}")


def _answer_part(request: Request, nll: Sequence[float]) -> Iterable[float]:
    # From the position that predicts the answer's first token on; without an answer all of the prompt's count.
    return nll[request.prompt_length - 1 :] if request.prompt_length < len(request.forced) else nll


def _mean_kl(answers: Iterable[GoldenAnswer]) -> float:
    return rounded(max(0.0, fmean(chain.from_iterable(a.kl for a in answers))))
