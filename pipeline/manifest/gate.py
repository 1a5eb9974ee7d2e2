"""The gate: a pure decision over all evidence, the thresholds and the previous release.

Rules: every variant needs evidence; a reason names variant, figure, value and limit; wall-clock figures are compared
with the previous release only where both were taken on the same kind of machine; nothing is rounded before comparing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.catalog.names import VARIANTS, Channel, RunnerClass, Variant
from pipeline.catalog.params import Cost, Limits, Params, Regression
from pipeline.manifest.evidence import Evidence, Measurement
from pipeline.manifest.statement import Row, Verdict

# Nats below which two runs of the same weights differ by kernels and rounding alone: no regression is read into them.
KL_NOISE = 1e-4


def row(evidence: Evidence, measurement: Measurement, cost: Cost) -> Row:
    """Return what the gate looks at; cost is median inference time at `cost`'s USD a second, per 1,000."""
    return Row(
        variant=evidence.variant,
        runner=evidence.runner,
        machine=measurement.machine.get("cpu", "unknown"),
        exact_match=evidence.quality.exact_match,
        mean_kl=evidence.quality.mean_kl,
        p99_kl=evidence.quality.p99_kl,
        perplexity_ratio=evidence.quality.perplexity_ratio,
        ttft_p95_ms=measurement.ttft_ms.p95,
        per_token_p50_ms=measurement.per_token_ms.p50,
        per_token_p95_ms=measurement.per_token_ms.p95,
        bytes=evidence.memory.model_bytes,
        cost_per_1k_usd=measurement.inference_ms.p50 * cost.usd_per_second,
    )


def gate(
    checks: Iterable[tuple[Evidence, Measurement]],
    params: Params,
    previous: Verdict | None,
    previous_version: int | None,
) -> Verdict:
    """Return the verdict over all checks.

    Args:
        previous: the previous release's verdict; None for the first release.
    """
    pairs = sorted(checks, key=lambda pair: (pair[0].variant, pair[0].runner))
    rows = [row(e, m, params.costs[e.runner]) for e, m in pairs if e.runner in params.costs]
    before = {(r.variant, r.runner): r for r in previous.rows} if previous else {}
    reasons = [*_unproven(pairs), *_unpriced(pairs, params.costs)]
    for found in rows:
        reasons += _over_limits(found, params.thresholds.tiers[Variant.parse(found.variant).tier])
        if (last := before.get((found.variant, found.runner))) is not None:
            reasons += _worse_than(found, last, params.thresholds.regression)
    channels = [] if reasons else _channels(pairs, params.channels)
    return Verdict(passed=not reasons, reasons=reasons, channels=channels, previous_version=previous_version, rows=rows)


def _unproven(pairs: list[tuple[Evidence, Measurement]]) -> Iterator[str]:
    proven = {e.variant for e, _ in pairs}
    for variant in VARIANTS:
        if variant.name not in proven:
            yield f"{variant}: there is no evidence"
    for evidence, _ in pairs:
        if not evidence.deterministic:
            yield f"{evidence.variant} on {evidence.runner}: two runs gave different tokens"


def _unpriced(pairs: list[tuple[Evidence, Measurement]], costs: dict[RunnerClass, Cost]) -> Iterator[str]:
    for runner in sorted({e.runner for e, _ in pairs} - set(costs)):
        yield f"params.yaml has no costs for runner class {runner}"


def _over_limits(found: Row, limits: Limits) -> Iterator[str]:
    quality, latency = limits.quality, limits.latency
    if found.exact_match < quality.exact_match_min:
        yield _reason(found, "exact match", found.exact_match, "below", quality.exact_match_min)
    for figure, value, limit in (
        ("mean KL", found.mean_kl, quality.mean_kl_max),
        ("p99 KL", found.p99_kl, quality.p99_kl_max),
        ("perplexity ratio", found.perplexity_ratio, quality.perplexity_ratio_max),
        ("p95 time to first token (ms)", found.ttft_p95_ms, latency.ttft_p95_ms_max),
        ("p95 time per token (ms)", found.per_token_p95_ms, latency.per_token_p95_ms_max),
        ("size (bytes)", found.bytes, limits.bytes_max),
        ("cost per 1,000 (USD)", found.cost_per_1k_usd, limits.cost_per_1k_usd_max),
    ):
        if value > limit:
            yield _reason(found, figure, value, "above", limit)


def _worse_than(found: Row, last: Row, allowed: Regression) -> Iterator[str]:
    least = last.exact_match - allowed.exact_match_drop_max
    if found.exact_match < least:
        yield _reason(found, "exact match against the previous release", found.exact_match, "below", least)
    compared = [
        ("mean KL", found.mean_kl, max(last.mean_kl * allowed.mean_kl_ratio_max, KL_NOISE)),
        ("size (bytes)", found.bytes, last.bytes * allowed.bytes_ratio_max),
    ]
    if found.machine == last.machine:
        compared += [
            ("p50 time per token (ms)", found.per_token_p50_ms, last.per_token_p50_ms * allowed.latency_ratio_max),
            ("cost per 1,000 (USD)", found.cost_per_1k_usd, last.cost_per_1k_usd * allowed.cost_ratio_max),
        ]
    for figure, value, most in compared:
        if value > most:
            yield _reason(found, f"{figure} against the previous release", value, "above", most)


def _reason(found: Row, figure: str, value: float, side: str, limit: float) -> str:
    return f"{found.variant} on {found.runner}: {figure} is {value:.6g}, {side} {limit:.6g}"


def _channels(pairs: list[tuple[Evidence, Measurement]], policy: dict[Channel, list[RunnerClass]]) -> list[Channel]:
    proven = {(e.variant, e.runner) for e, _ in pairs}
    return [
        channel
        for channel in Channel
        if channel in policy and all((v.name, runner) in proven for v in VARIANTS for runner in policy[channel])
    ]
