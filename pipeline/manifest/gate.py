"""The gate: a pure decision over all evidence, the thresholds and the previous release.

Rules: every variant needs evidence, and all of it of what is released: of the files and golden prompts of the host's
check, which is made anew whenever they change; a reason names variant, figure, value and limit; wall-clock figures are
compared with the previous release only where both were taken on the same kind of machine, instructions only within one
format; evidence from a board's stand-in, or taken while the board was throttled, opens no channel; an emulator is asked
too few prompts to judge exact match and p99 KL by; nothing is rounded before comparing. A variant tuned to a family is
judged by the golden prompts of that family, which its search did not see, and must be better there than that for all
prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.catalog.names import VARIANTS, Channel, RunnerClass, Variant, parted
from pipeline.catalog.params import ChannelPolicy, Cost, Limits, Params, Regression
from pipeline.manifest.evidence import Certificate, Evidence, Family, Measurement
from pipeline.manifest.statement import Row, Verdict

# Nats below which two runs of the same weights differ by kernels and rounding alone: no regression is read into them.
KL_NOISE = 1e-4
# Runner classes whose clock counts: all but the emulator.
MEASURED = frozenset(RunnerClass) - {RunnerClass.EMULATED}


@dataclass(frozen=True)
class Check:
    """One check as the gate sees it: evidence, the clock's figures where they count, and the recipe's base."""

    evidence: Evidence
    measurement: Measurement | None = None
    format: str | None = None


@dataclass(frozen=True)
class Proof:
    """All that was found about a release: checks, a certificate for each file, and what is wrong with the evidence;
    `variants` are those that are to be released."""

    checks: Sequence[Check]
    certificates: Sequence[Certificate] = ()
    objections: Sequence[str] = ()
    variants: Sequence[Variant] = VARIANTS


def row(check: Check, cost: Cost | None) -> Row:
    """Return what the gate looks at; cost is of 1,000 median inferences, with joules where they were measured."""
    evidence, measured = check.evidence, check.measurement
    every = evidence.quality
    quality = own_family(evidence) or every
    found = Row(
        variant=evidence.variant,
        runner=evidence.runner,
        machine=measured.machine.get("cpu", "unknown") if measured else evidence.engine.get("cpu", "unknown"),
        exact_match=quality.exact_match,
        mean_kl=quality.mean_kl,
        p99_kl=every.p99_kl if quality.p99_kl is None else quality.p99_kl,
        perplexity_ratio=every.perplexity_ratio if quality.perplexity_ratio is None else quality.perplexity_ratio,
        bytes=evidence.memory.model_bytes,
        format=check.format,
        bytes_per_token=evidence.memory.bytes_per_token,
        instructions_per_token=evidence.instructions.per_token if evidence.instructions else None,
        stand_in=evidence.stand_in,
    )
    if measured is None:
        return found
    seconds, joules = measured.inference_ms.p50 / 1e3, measured.joules_per_inference
    clocked = {
        "ttft_p95_ms": measured.ttft_ms.p95,
        "per_token_p50_ms": measured.per_token_ms.p50,
        "per_token_p95_ms": measured.per_token_ms.p95,
        "cost_per_1k_usd": 1000 * cost.usd(seconds, joules) if cost else None,
    }
    return found.model_copy(update=clocked)


def own_family(evidence: Evidence) -> Family | None:
    """Return the quality on the family a variant is tuned to; None where it is for all prompts, or was asked none."""
    return evidence.quality.families.get(parted(evidence.variant)[1])


def gate(proof: Proof, params: Params, previous: Verdict | None, previous_version: int | None) -> Verdict:
    """Return the verdict over all that was found.

    Args:
        previous: the previous release's verdict; None for the first release.
    """
    checks = sorted(proof.checks, key=lambda c: (c.evidence.variant, c.evidence.runner))
    rows = [row(c, params.costs.get(c.evidence.runner)) for c in checks]
    before = {(r.variant, r.runner): r for r in previous.rows} if previous else {}
    reasons = [*proof.objections, *_unproven(checks, proof.variants), *_unpriced(checks, params.costs)]
    reasons += [*_of_others(checks), *_parted(proof.certificates), *_not_worth_tuning(checks)]
    for found in rows:
        reasons += _over_limits(found, params.thresholds.tiers[Variant.parse(found.variant).tier])
        if (last := before.get((found.variant, found.runner))) is not None:
            reasons += _worse_than(found, last, params.thresholds.regression)
    channels = [] if reasons else _channels(checks, proof.variants, params.channels)
    return Verdict(passed=not reasons, reasons=reasons, channels=channels, previous_version=previous_version, rows=rows)


def _unproven(checks: Sequence[Check], variants: Sequence[Variant]) -> Iterator[str]:
    proven = {c.evidence.variant for c in checks}
    for variant in variants:
        if variant.name not in proven:
            yield f"{variant}: there is no evidence"
    for check in checks:
        if not check.evidence.deterministic:
            yield f"{check.evidence.variant} on {check.evidence.runner}: two runs gave different tokens"


def _of_others(checks: Sequence[Check]) -> Iterator[str]:
    """Why checks do not count that are not of the files and golden prompts of the host's check of their variant."""
    current = {c.evidence.variant: c.evidence for c in checks if c.evidence.runner is RunnerClass.HOST}
    for evidence in (c.evidence for c in checks):
        where, released = f"{evidence.variant} on {evidence.runner}", current.get(evidence.variant)
        if released is None:
            yield f"{where}: there is no check on host to tell the released files by: make it"
        elif strays := evidence.strays(released.files, released.golden_sha256):
            yield f"{where}: its evidence is of {strays} than are released: check it there again, or remove it"


def _unpriced(checks: Sequence[Check], costs: dict[RunnerClass, Cost]) -> Iterator[str]:
    for runner in sorted({c.evidence.runner for c in checks} & MEASURED - set(costs)):
        yield f"params.yaml has no costs for runner class {runner}"


def _parted(certificates: Sequence[Certificate]) -> Iterator[str]:
    for certificate in certificates:
        for target in certificate.targets:
            if not target.holds:
                yield (
                    f"model {certificate.model_sha256[:12]} on {target.target}: tokens or logits part from "
                    f"{certificate.reference}'s (mean KL {target.mean_kl:.3g}, {len(target.differences)} differences)"
                )


def _not_worth_tuning(checks: Sequence[Check]) -> Iterator[str]:
    """Why tuned variants are no better than those for all prompts, on runner classes that are asked enough prompts."""
    found = {(c.evidence.variant, c.evidence.runner): c.evidence for c in checks}
    for (name, runner), evidence in found.items():
        variant = Variant.parse(name)
        if variant.family and runner in MEASURED:
            plain = found.get((variant.plain.name, runner))
            yield from _no_better(variant, runner, own_family(evidence), plain)


def _no_better(variant: Variant, runner: RunnerClass, own: Family | None, plain: Evidence | None) -> Iterator[str]:
    where = f"{variant} on {runner}"
    general = plain.quality.families.get(variant.family) if plain else None
    if own is None or general is None:
        yield f"{where}: no golden prompts of family {variant.family} to compare it with {variant.plain} by"
        return
    if own.mean_kl >= general.mean_kl:
        yield f"{where}: mean KL on its family is {own.mean_kl:.6g}, not below {variant.plain}'s {general.mean_kl:.6g}"
    if own.exact_match < general.exact_match:
        yield (
            f"{where}: exact match on its family is {own.exact_match:.6g}, below {variant.plain}'s "
            f"{general.exact_match:.6g}"
        )


def _over_limits(found: Row, limits: Limits) -> Iterator[str]:
    quality, latency = limits.quality, limits.latency
    if found.runner in MEASURED and found.exact_match < quality.exact_match_min:
        yield _reason(found, "exact match", found.exact_match, "below", quality.exact_match_min)
    for figure, value, limit in (
        ("mean KL", found.mean_kl, quality.mean_kl_max),
        ("p99 KL", found.p99_kl if found.runner in MEASURED else None, quality.p99_kl_max),
        ("perplexity ratio", found.perplexity_ratio, quality.perplexity_ratio_max),
        ("p95 time to first token (ms)", found.ttft_p95_ms, latency.ttft_p95_ms_max),
        ("p95 time per token (ms)", found.per_token_p95_ms, latency.per_token_p95_ms_max),
        ("size (bytes)", found.bytes, limits.bytes_max),
        ("cost per 1,000 (USD)", found.cost_per_1k_usd, limits.cost_per_1k_usd_max),
    ):
        if value is not None and value > limit:
            yield _reason(found, figure, value, "above", limit)


def _worse_than(found: Row, last: Row, allowed: Regression) -> Iterator[str]:
    least = last.exact_match - allowed.exact_match_drop_max
    if found.runner in MEASURED and found.exact_match < least:
        yield _reason(found, "exact match against the previous release", found.exact_match, "below", least)
    compared: list[tuple[str, float | None, float | None]] = [
        ("mean KL", found.mean_kl, max(last.mean_kl * allowed.mean_kl_ratio_max, KL_NOISE)),
        ("size (bytes)", found.bytes, last.bytes * allowed.bytes_ratio_max),
    ]
    if found.machine == last.machine and found.stand_in == last.stand_in:
        compared += [
            (
                "p50 time per token (ms)",
                found.per_token_p50_ms,
                _times(last.per_token_p50_ms, allowed.latency_ratio_max),
            ),
            ("cost per 1,000 (USD)", found.cost_per_1k_usd, _times(last.cost_per_1k_usd, allowed.cost_ratio_max)),
        ]
    if found.format == last.format:
        most = _times(last.instructions_per_token, allowed.instructions_ratio_max)
        compared.append(("instructions per token", found.instructions_per_token, most))
    for figure, value, most in compared:
        if value is not None and most is not None and value > most:
            yield _reason(found, f"{figure} against the previous release", value, "above", most)


def _times(value: float | None, ratio: float) -> float | None:
    return None if value is None else value * ratio


def _reason(found: Row, figure: str, value: float, side: str, limit: float) -> str:
    return f"{found.variant} on {found.runner}: {figure} is {value:.6g}, {side} {limit:.6g}"


def proven(checks: Iterable[Check]) -> dict[str, set[RunnerClass]]:
    """Return on which runner classes each variant was proven: on the class's own hardware, at full speed."""
    found: dict[str, set[RunnerClass]] = {}
    for check in checks:
        throttled = check.measurement is not None and check.measurement.throttled
        if check.evidence.stand_in is None and not throttled:
            found.setdefault(check.evidence.variant, set()).add(check.evidence.runner)
    return found


def _channels(
    checks: Iterable[Check], variants: Sequence[Variant], policy: dict[Channel, ChannelPolicy]
) -> list[Channel]:
    found = proven(checks)
    return [
        channel
        for channel in Channel
        if channel in policy and all(policy[channel].accepted(v) & found.get(v.name, set()) for v in variants)
    ]
