"""Releases with everything a report can show: nine variants on several runner classes, and the release before."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pipeline.catalog.names import GGUF_TIERS, VARIANTS, RunnerClass, Target, Tier, Variant
from pipeline.manifest import statement
from pipeline.manifest.encoding import sha256
from pipeline.manifest.evidence import (
    Agreement,
    Answer,
    Certificate,
    Difference,
    Evidence,
    Family,
    File,
    Instructions,
    Measurement,
    Memory,
    Missing,
    Percentiles,
    Quality,
    quantile,
)
from pipeline.manifest.gate import Check, Proof, gate
from pipeline.manifest.search import Figures, Found, Point
from pipeline.manifest.statement import (
    Manifest,
    ModelConfig,
    Predicate,
    ReleaseName,
    RuntimeEntry,
    Source,
    VariantEntry,
)
from pipeline.report.durations import Durations
from pipeline.report.model import Material
from pipeline.report.subject import Subject, before, of_manifest
from tests.support.evidence import PARAMS

HOST, EMULATED, PI5, NVLINK, RISCV = (RunnerClass(name) for name in ("host", "emulated", "pi5", "nvlink", "riscv"))
STAND_IN = "2 ranks on processors, joined by gloo"
FAMILIES = ("diagnosis", "fact", "lookup", "summary", "total")

# What a manifest may try to be taken for.
HOSTILE = {
    "script": "<script>alert(1)</script>",
    "attribute": '"><img src=x onerror=alert(1)>',
    "style": "</style><style>body{display:none}",
    "comment": "<!-- --><b>",
    "template": "{{ 7 * 7 }} {% raw %}",
    "pipe": "a | b | c",
    "backticks": "`code` ``x``",
    "mention": "@octocat and #1",
    "link": "[link](https://evil.example) ![i](x) <https://evil.example>",
    "autolink": "https://evil.example www.evil.example",
    "lines": "line\n\n# heading\n- item\n```\nfence",
    "numbered": "1. one",
    "quote": "> quote",
    "emphasis": "*a* **b** _c_ ~d~ $e$ \\n",
    "control": "\u202egnp.exe\u2066\x1b[31m\x00",
    "entities": "&lt;i&gt; &amp; &#64;user",
}

_CLASSES: dict[Tier, dict[Target, tuple[RunnerClass, ...]]] = {
    Tier.TINY_EDGE: {
        Target.ARM64: (HOST, EMULATED, PI5),
        Target.RISCV64: (HOST, EMULATED),
        Target.X86_64: (HOST,),
    },
    Tier.MID_TIER: {
        Target.ARM64: (HOST, EMULATED, PI5),
        Target.RISCV64: (HOST, EMULATED),
        Target.X86_64: (HOST,),
    },
    Tier.LARGE: {Target.ARM64: (HOST,), Target.RISCV64: (HOST,), Target.X86_64: (HOST, NVLINK)},
}
_RECIPES = {Target.ARM64: "Q4_0", Target.RISCV64: "Q4_K_M", Target.X86_64: "Q4_K_M"}
_BYTES = {Tier.TINY_EDGE: 700_000, Tier.MID_TIER: 1_400_000, Tier.LARGE: 5_300_000}
_KL = {Tier.TINY_EDGE: 1.6e-2, Tier.MID_TIER: 6e-3, Tier.LARGE: 1.3e-5}
_TOKEN_MS = {HOST: 0.09, PI5: 0.9, NVLINK: 0.25}
_MACHINES = {
    HOST: {"cpu": "AMD EPYC", "cores": "2", "kernel": "Linux 6.18"},
    PI5: {"board": "Raspberry Pi 5 Model B Rev 1.0", "cpu": "Cortex-A76", "governor": "performance", "kernel": "6.12"},
    NVLINK: {"cpu": "AMD EPYC", "cores": "2", "kernel": "Linux 6.18"},
}


def manifest(version: int = 2, previous: Manifest | None = None, **release: Any) -> Manifest:
    """Return a release; a later version is a little smaller, better and faster, and one variant of it slower."""
    entries = [_entry(variant, version) for variant in VARIANTS]
    certificates = [e.certificate for e in entries if e.certificate]
    checks = [c for entry in entries for c in _checks(entry)]
    last = previous.predicate.gate if previous else None
    verdict = gate(Proof(checks, certificates), PARAMS, last, previous.release.version if previous else None)
    return statement.build(
        Predicate(
            release=ReleaseName(
                **{
                    "line": "edge-demo",
                    "version": version,
                    "tag": f"v0.{version}.0",
                    "expires": datetime(2027, 3, 1, tzinfo=UTC),
                    **release,
                }
            ),
            source=Source(
                commit=sha256(b"commit")[:40],
                modified=[],
                lock_sha256=sha256(b"lock"),
                teacher="models/demo/teacher",
                teacher_sha256=sha256(b"teacher"),
                golden_sha256=sha256(b"golden"),
            ),
            toolchain={"llama.cpp": "0c1e57098bba", "torch": "2.13.0+cpu", "python": "3.11"},
            variants=entries,
            runtimes=[_runtime(target, version) for target in Target],
            gate=verdict,
        )
    )


def changed(found: Manifest, **predicate: Any) -> Manifest:
    """Return a manifest with other fields of the predicate."""
    return found.model_copy(update={"predicate": found.predicate.model_copy(update=predicate)})


def subject(found: Manifest, *, published: bool = False) -> Subject:
    """Return a manifest as what is reported on."""
    return of_manifest(found, statement.digest(found.encode()), published=published)


def material(now: Manifest | None = None, last: Manifest | None = None, **more: Any) -> Material:
    """Return what the report of a release is made from: by default the second, after the first."""
    last = last or manifest(1)
    now = now or manifest(2, last)
    arguments: dict[str, Any] = {"before": before(last), "params": PARAMS, "durations": clocked(now), **more}
    return Material(subject(now), **arguments)


def hostile(value: str) -> Material:
    """Return a release that says `value` wherever a manifest may say anything."""
    found = manifest(2, line=value, tag=value)
    first = found.predicate.variants[0]
    evidence = first.evidence[0]
    families = {value: next(iter(evidence.quality.families.values()))}
    certificate = first.certificate
    assert certificate is not None
    apart = Difference(id=value, position=1, margin=0.01)
    agreement = certificate.targets[0].model_copy(update={"emulator": value, "differences": [apart]})
    worse = first.model_copy(
        update={
            "recipe": {"base": value, "tensors": [value]},
            "files": [f.model_copy(update={"name": value + f.name}) for f in first.files],
            "evidence": [
                evidence.model_copy(
                    update={"stand_in": value, "quality": evidence.quality.model_copy(update={"families": families})}
                ),
                *(
                    e.model_copy(
                        update={"instructions": e.instructions.model_copy(update={"emulator": value, "cpu": value})}
                    )
                    for e in first.evidence
                    if e.instructions
                ),
            ],
            "measurements": [
                m.model_copy(update={"machine": {value: value}, "throttled": [value]}) for m in first.measurements
            ],
            "missing": [Missing(variant=first.name, runner=RISCV, missing=value)],
            "search": how_found(value, value).model_copy(update={"budget": {"preset": value}}),
            "certificate": certificate.model_copy(update={"targets": [agreement], "missing": {Target.RISCV64: value}}),
        }
    )
    gate = found.predicate.gate
    rows = [r.model_copy(update={"machine": value, "format": value}) for r in gate.rows]
    verdict = gate.model_copy(update={"passed": False, "reasons": [value], "channels": [], "rows": rows})
    source = found.predicate.source.model_copy(update={"teacher": value, "modified": [value], "commit": value})
    worse_manifest = changed(
        found,
        variants=[worse, *found.predicate.variants[1:]],
        gate=verdict,
        source=source,
        toolchain={value: value},
    )
    return material(worse_manifest, manifest(1), notes=[value])


def clocked(found: Manifest) -> dict[tuple[str, RunnerClass], Durations]:
    """Return the durations behind every measurement."""
    keys = [(m.variant, m.runner) for entry in found.predicate.variants for m in entry.measurements]
    return {(name, runner): _durations(Variant.parse(name), runner, found.release.version) for name, runner in keys}


def _entry(variant: Variant, version: int) -> VariantEntry:
    gguf = variant.tier in GGUF_TIERS
    runners = _CLASSES[variant.tier][variant.target]
    return VariantEntry(
        name=variant.name,
        tier=variant.tier,
        target=variant.target,
        format="gguf" if gguf else "safetensors",
        files=_files(variant, version),
        recipe={"base": _RECIPES[variant.target], "imatrix": True, "tensors": ["output=Q6_K"] if version > 1 else []}
        if gguf
        else {"degree": 2, "matrices": "bf16", "norms": "f32"},
        model=ModelConfig(
            architecture="llama",
            parameters=_BYTES[variant.tier] * 3 // 2,
            layers=4,
            hidden=256,
            vocabulary=512,
            context=512,
            tensor_parallel=1 if gguf else 2,
        ),
        evidence=[_evidence(variant, runner, version) for runner in runners],
        measurements=[_measurement(variant, runner, version) for runner in runners if runner is not EMULATED],
        missing=_missing(variant),
        certificate=_certificate(variant, version) if gguf else None,
        search=how_found() if variant == Variant(Tier.TINY_EDGE, Target.ARM64) else None,
    )


def how_found(tensor: str = "blk.0.attn_q.weight", kind: str = "Q4_K") -> Found:
    """Return how a recipe was found; `tensor` is one of two."""

    def point(name: str, size: int, kl: float) -> Point:
        figures = Figures(mean_kl=kl, answer_kl=2 * kl, p99_kl=9 * kl)
        per_token = {"bytes_per_token": size, "instructions_per_token": size * 0.5}
        return Point(name=name, size=size, **per_token, predicted_kl=kl * 1.1, measured=figures)

    sizes = {"Q2_K": 400_000, "Q4_0": 620_000, "Q4_K_M": 640_000, "Q8_0": 1_100_000}
    return Found(
        budget={"preset": "Q4_0", "measured": 24},
        limits={"bytes": 620_000.0, "instructions a token": 310_000.0},
        bound=2e-3,
        solved=point("search", 619_000, 2.6e-3),
        chosen=point("search", 619_500, 2.4e-3),
        types={"output.weight": "Q6_K", tensor: kind},
        front=[point("search", size - 500, 1e-3 * 620_000 / size) for size in sizes.values()],
        presets=[point(name, size, 8e-3 * 620_000 / size) for name, size in sizes.items()],
        losses={"output.weight": {"Q4_K": 1e-3, "Q6_K": 0.0}, tensor: {kind: 2e-4, "Q6_K": 1e-5}},
        measured=24,
    )


def _checks(entry: VariantEntry) -> list[Check]:
    measured = {m.runner: m for m in entry.measurements}
    return [Check(e, measured.get(e.runner), entry.recipe.get("base")) for e in entry.evidence]


def _size(variant: Variant, version: int) -> int:
    share = {Target.ARM64: 1.0, Target.RISCV64: 1.07, Target.X86_64: 1.07}[variant.target]
    return int(_BYTES[variant.tier] * (share if variant.tier in GGUF_TIERS else 1) * (1.06 if version == 1 else 1))


def _files(variant: Variant, version: int) -> list[File]:
    if variant.tier is Tier.LARGE:
        shards = [f"model-rank-0000{n}-of-00002.safetensors" for n in range(2)]
        return [_file("config.json", 716, 1), *(_file(name, 2_600_000, 1) for name in shards)]
    model = f"{variant.tier}/{_RECIPES[variant.target]}"
    files = [_file("golden.jsonl", 30_886, 1), _file(model, _size(variant, version), version, name="model.gguf")]
    return [*files, _file(model + "/recipe", 251, version, name="recipe.json")] if version > 1 else files


def _checked_files(variant: Variant, version: int) -> list[File]:
    return [file for file in _files(variant, version) if file.name != statement.GOLDEN]


def _file(content: str, size: int, version: int, name: str | None = None) -> File:
    return File(name=name or content, size=size, sha256=sha256(f"{content} {version}".encode()))


def _evidence(variant: Variant, runner: RunnerClass, version: int) -> Evidence:
    prompts = 2 if runner is EMULATED else 40
    kl = _KL[variant.tier] * (1.3 if version == 1 else 1) * (1.4 if variant.target is Target.ARM64 else 1)
    exact = {Tier.TINY_EDGE: 0.95, Tier.MID_TIER: 0.985, Tier.LARGE: 1.0}[variant.tier]
    families = {
        name: Family(prompts=prompts, exact_match=round(exact - 0.01 * (n % 2), 3), mean_kl=kl * (0.4 + 0.3 * n))
        for n, name in enumerate(FAMILIES)
    }
    size = _size(variant, version)
    return Evidence(
        variant=variant.name,
        runner=runner,
        files=_checked_files(variant, version),
        golden_sha256=sha256(b"golden"),
        engine={"name": "llama.cpp"},
        deterministic=True,
        answers=[Answer(id="fact-000", tokens=[1, 2], passed=True)],
        quality=Quality(
            exact_match=exact - (0.004 if version == 1 and variant.tier is Tier.TINY_EDGE else 0),
            mean_kl=kl,
            p99_kl=kl * 17,
            perplexity_ratio=1 + kl / 3,
            families=families,
        ),
        memory=Memory(model_bytes=size, bytes_per_token=int(size * 0.87)),
        instructions=_instructions(variant, version) if runner is EMULATED else None,
        stand_in=STAND_IN if runner is NVLINK else None,
    )


def _instructions(variant: Variant, version: int) -> Instructions:
    token = _BYTES[variant.tier] * (3.1 if variant.target is Target.ARM64 else 5.3) * (1.02 if version == 1 else 1)
    arm = variant.target is Target.ARM64
    return Instructions(
        emulator="qemu-aarch64 10.0" if arm else "qemu-riscv64 10.0",
        cpu="cortex-a76" if arm else "rv64,v=true,vext_spec=v1.0,vlen=256",
        prompt=int(token * 180),
        prompt_tokens=240,
        generated=int(token * 36),
        steps=36,
    )


def _durations(variant: Variant, runner: RunnerClass, version: int) -> Durations:
    noise = random.Random(f"{variant} {runner} {version}")
    token = _TOKEN_MS[runner] * _BYTES[variant.tier] / 700_000 * (1.1 if version == 1 else 1)
    if variant.name == "mid-tier-x86_64" and version > 1:
        token *= 1.5

    def draw(scale: float, count: int) -> tuple[float, ...]:
        return tuple(scale * math.exp(noise.gauss(0, 0.25)) for _ in range(count))

    return Durations(draw(9 * token, 200), draw(token, 600), draw(13 * token, 200))


def _measurement(variant: Variant, runner: RunnerClass, version: int) -> Measurement:
    found = _durations(variant, runner, version)
    held = variant.name == "mid-tier-arm64" and runner is PI5
    return Measurement(
        variant=variant.name,
        runner=runner,
        ttft_ms=_percentiles(found.ttft_ms),
        per_token_ms=_percentiles(found.per_token_ms),
        inference_ms=_percentiles(found.inference_ms),
        peak_rss_bytes=60_000_000 + 10 * _size(variant, version),
        machine=_MACHINES[runner],
        joules_per_inference=0.031 * _BYTES[variant.tier] / 700_000 if runner is PI5 else None,
        temperature_c=61.5 if runner is PI5 else None,
        throttled=["soft temperature limit"] if held else [],
    )


def _percentiles(row: Sequence[float]) -> Percentiles:
    return Percentiles(p50=round(quantile(row, 0.5), 4), p95=round(quantile(row, 0.95), 4))


def _missing(variant: Variant) -> list[Missing]:
    if variant.tier in GGUF_TIERS and variant.target is Target.RISCV64:
        return [Missing(variant=variant.name, runner=RISCV, missing="no board of this class is attached")]
    if variant.tier is Tier.LARGE and variant.target is not Target.X86_64:
        return [Missing(variant=variant.name, runner=NVLINK, missing="no GPU in this machine")]
    return []


def _certificate(variant: Variant, version: int) -> Certificate:
    model = next(f for f in _files(variant, version) if f.name == "model.gguf")
    tie = [Difference(id="total-003", position=4, margin=0.0035)] if variant.tier is Tier.MID_TIER else []
    compared = [
        Agreement(
            target=Target.ARM64, emulator="qemu-aarch64 10.0", mean_kl=2.2e-8, max_kl=4.1e-7, differences=[], holds=True
        )
    ]
    riscv = Agreement(
        target=Target.RISCV64, emulator="qemu-riscv64 10.0", mean_kl=3.0e-7, max_kl=5.9e-6, differences=tie, holds=True
    )
    gone = variant.tier is Tier.TINY_EDGE and variant.target is Target.ARM64
    return Certificate(
        model_sha256=model.sha256,
        reference=Target.X86_64,
        prompts=[f"{family}-000" for family in FAMILIES],
        margin_max=0.05,
        mean_kl_max=1e-3,
        targets=compared if gone else [*compared, riscv],
        missing={Target.RISCV64: "qemu-riscv64 is not installed"} if gone else {},
    )


def _runtime(target: Target, version: int) -> RuntimeEntry:
    programs = ("golden-runner", "llama-server")
    files = [File(name=p, size=6_500_000, sha256=sha256(f"{p} {target} {version}".encode())) for p in programs]
    return RuntimeEntry(name=statement.runtime_name(target), target=target, files=files)
