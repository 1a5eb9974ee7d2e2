"""`params.yaml`: what holds for the release as a whole."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.catalog.document import Document
from pipeline.catalog.names import Channel, RunnerClass, Target, Tier, Variant
from pipeline.catalog.tiers import EmbeddedSource, HubSource

Ratio = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]


class Release(Document):
    """What this release is called and how long it may be used."""

    line: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    version: Annotated[int, Field(ge=1, le=9_999_999_999)]
    tag: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,62}$")]
    valid_days: Annotated[int, Field(ge=1, le=3650)]
    registry: str = "registry"


class Teacher(Document):
    """The model every variant descends from: `hub`, or a folder in the repository."""

    hub: HubSource | None = None
    embedded: EmbeddedSource | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Teacher:
        if (self.hub is None) == (self.embedded is None):
            raise ValueError("give exactly one of 'hub' and 'embedded'")
        return self


class Data(Document):
    """Paths of the prompt files, relative to the repository."""

    golden: str
    calibration: str
    distillation: str


class Check(Document):
    """How variants are checked."""

    context: Annotated[int, Field(ge=64, description="tokens")] = 512
    threads: Annotated[int, Field(ge=1, description="fixed, because the order of additions affects bytes")] = 1
    emulated_per_family: Annotated[
        int, Field(ge=1, description="golden prompts of each family that an emulator, being slow, is asked")
    ] = 2


class Certificate(Document):
    """Within what bounds the targets' tokens and logits of one file must agree."""

    margin_max: Annotated[
        float, Field(ge=0, description="largest gap of the reference's two best logits at a first difference")
    ] = 0.05
    mean_kl_max: Annotated[float, Field(ge=0, description="nats, the mean over all teacher-forced positions")] = 1e-3
    per_family: Annotated[int, Field(ge=1, description="golden prompts of each family that are compared")] = 1


class Quality(Document):
    """Limits a tier's quality must keep, against the unquantized tier and the expected answers."""

    exact_match_min: Fraction
    mean_kl_max: Amount
    p99_kl_max: Amount
    perplexity_ratio_max: Ratio


class Latency(Document):
    """Limits in milliseconds on the runner class `host`."""

    ttft_p95_ms_max: Amount
    per_token_p95_ms_max: Amount


class Limits(Document):
    """Absolute limits of one tier."""

    quality: Quality
    latency: Latency
    bytes_max: Annotated[int, Field(ge=1)]
    cost_per_1k_usd_max: Amount


class Regression(Document):
    """How much worse than the previous release a variant may be."""

    exact_match_drop_max: Fraction
    mean_kl_ratio_max: Ratio
    latency_ratio_max: Ratio
    bytes_ratio_max: Ratio
    cost_ratio_max: Ratio
    instructions_ratio_max: Ratio


class Thresholds(Document):
    """What the gate holds variants to."""

    tiers: dict[Tier, Limits]
    regression: Regression

    @model_validator(mode="after")
    def _every_tier(self) -> Thresholds:
        if set(self.tiers) != set(Tier):
            raise ValueError(f"limits are needed for {', '.join(Tier)}")
        return self


class Cost(Document):
    """What an hour on a runner class costs: device price over its life, plus power."""

    device_usd: Amount
    life_hours: Annotated[float, Field(gt=0)]
    watts: Amount
    usd_per_kwh: Amount
    source: str

    def usd(self, seconds: float, joules: float | None) -> float:
        """Return what a time of use costs: the device's share and its energy, as measured or `watts` for that time."""
        energy = self.watts * seconds if joules is None else joules
        return self.device_usd * seconds / (self.life_hours * 3600) + energy * self.usd_per_kwh / 3.6e6


class Roofline(Document):
    """What bounds decoding on a target's board from above: the bytes its memory can deliver in a second."""

    board: str
    bytes_per_second: Annotated[float, Field(gt=0)]
    source: str


class Runner(Document):
    """Who may speak for a runner class: keys of the machines whose signed evidence counts."""

    public_keys: Annotated[list[str], Field(max_length=256, description="PEM, EC P-256; `attest --init` prints it")]


class ChannelPolicy(Document):
    """Runner classes of which one must have proven a variant: by target for GGUF tiers, and for the large tier."""

    arm64: Annotated[list[RunnerClass], Field(min_length=1)]
    riscv64: Annotated[list[RunnerClass], Field(min_length=1)]
    x86_64: Annotated[list[RunnerClass], Field(min_length=1)]
    large: Annotated[list[RunnerClass], Field(min_length=1)]

    def accepted(self, variant: Variant) -> frozenset[RunnerClass]:
        """Return the runner classes of which one must have proven `variant`."""
        chosen: list[RunnerClass] = self.large if variant.tier is Tier.LARGE else getattr(self, variant.target)
        return frozenset(chosen)


class Params(Document):
    """`params.yaml` as a whole."""

    release: Release
    teacher: Teacher
    data: Data
    check: Check
    certificate: Certificate
    thresholds: Thresholds
    costs: dict[RunnerClass, Cost]
    rooflines: dict[Target, Roofline]
    runners: dict[RunnerClass, Runner]
    channels: dict[Channel, ChannelPolicy]
