"""Evidence, measurements and parameters for tests of the gate and the manifest."""

from __future__ import annotations

from pathlib import Path

from pipeline.catalog.names import VARIANTS, RunnerClass, Variant
from pipeline.catalog.params import Params
from pipeline.manifest.evidence import Evidence, Family, Instructions, Measurement, Memory, Percentiles, Quality
from pipeline.manifest.gate import Check
from pipeline.stages.project import Project

PARAMS: Params = Project.load(Path(__file__).parents[2]).params


def evidence(
    variant: Variant,
    *,
    runner: RunnerClass = RunnerClass.HOST,
    exact_match: float = 1.0,
    mean_kl: float = 1e-3,
    size: int = 10**6,
    per_token: int | None = None,
) -> Evidence:
    """Return evidence that passes by default; `per_token` are the instructions an emulator counted."""
    counted = {"emulator": "test", "cpu": "test cpu", "prompt": 1, "prompt_tokens": 1, "steps": 1}
    return Evidence(
        variant=variant.name,
        runner=runner,
        instructions=Instructions(**counted, generated=per_token) if per_token else None,
        files=[],
        golden_sha256="0" * 64,
        engine={"name": "test"},
        deterministic=True,
        answers=[],
        quality=Quality(
            exact_match=exact_match,
            mean_kl=mean_kl,
            p99_kl=mean_kl,
            perplexity_ratio=1.0,
            families={"f": Family(prompts=1, exact_match=exact_match, mean_kl=mean_kl)},
        ),
        memory=Memory(model_bytes=size, bytes_per_token=size),
    )


def measurement(
    variant: Variant, *, runner: RunnerClass = RunnerClass.HOST, token_ms: float = 1.0, cpu: str = "test cpu"
) -> Measurement:
    """Return a measurement that passes by default."""
    figures = Percentiles(p50=token_ms, p95=token_ms)
    return Measurement(
        variant=variant.name,
        runner=runner,
        ttft_ms=figures,
        per_token_ms=figures,
        inference_ms=figures,
        peak_rss_bytes=1,
        machine={"cpu": cpu},
    )


def check(found: Evidence, measured: Measurement | None = None) -> Check:
    """Return a check as the gate sees it."""
    return Check(found, measured, "Q4_0")


def host_checks() -> list[Check]:
    """Return passing checks of all nine variants on the host."""
    return [check(evidence(v), measurement(v)) for v in VARIANTS]
