"""`models/<tier>.yaml`: where a tier's weights come from and how its variants are made.

Rules: a tier either descends from the teacher (`distill`) or names its own hub repository (`repo`), never both;
GGUF tiers carry one recipe per target, the large tier carries `shard`. Both sources are always written, the unused
one as null: DVC tracks them by name.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.catalog.document import Document
from pipeline.catalog.names import GGUF_TIERS, Target, Tier
from pipeline.catalog.recipe import Chosen

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]


class HubSource(Document):
    """A Hugging Face repository at a pinned revision."""

    repo: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="a full commit hash: branches and tags move")]


class EmbeddedSource(Document):
    """A model folder in the repository, pinned by the digest of its tree."""

    path: str
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Distill(Document):
    """Prune the teacher, then distil it into the student with logit KL (Hinton et al. 2015, arXiv:1503.02531)."""

    layers: Annotated[
        list[Annotated[int, Field(ge=0)]], Field(min_length=1, description="teacher layers kept, in order")
    ]
    ffn: Annotated[
        int, Field(ge=32, multiple_of=32, description="width of the feed-forward, most active channels kept")
    ]
    steps: Positive
    batch: Positive
    learning_rate: Rate
    prompt_weight: Annotated[
        float, Field(ge=0, le=1, description="loss weight of prompt tokens; answer tokens weigh 1")
    ] = 0.2
    kl_weight: Annotated[float, Field(ge=0, le=1, description="share of KL in the loss; the rest is cross-entropy")] = (
        0.9
    )
    max_length: Positive = 512
    seed: int = 0

    @model_validator(mode="after")
    def _layers_ascend(self) -> Distill:
        if sorted(set(self.layers)) != self.layers:
            raise ValueError("layers must ascend without repeats")
        return self


class Convert(Document):
    """How safetensors become GGUF; `outtype` is the unquantized reference's type."""

    outtype: Literal["f32", "bf16", "f16"] = "bf16"
    pre_tokenizer: Annotated[
        str | None,
        Field(description="llama.cpp's name, used only where its converter does not know the tokenizer"),
    ] = None


class Calibrate(Document):
    """How the importance matrix is collected."""

    context: Annotated[int, Field(ge=32, description="tokens a chunk")] = 512
    chunks: Annotated[int, Field(ge=1, description="at most this many")] = 256


class Sensitivity(Document):
    """How a tier's matrices are surveyed, where a recipe is to be searched for."""

    per_family: Annotated[int, Field(ge=2, description="calibration examples of each family")] = 64
    draws: Annotated[int, Field(ge=1, description="random signs a position: more make predictions less noisy")] = 4
    seed: int = 0


class Shard(Document):
    """How the large tier is split for tensor parallelism."""

    degree: Annotated[int, Field(ge=1, le=64)]
    matrices: Literal["bf16", "f16", "f32"] = "bf16"
    norms: Literal["bf16", "f16", "f32"] = "f32"


class TierFile(Document):
    """One `models/<tier>.yaml`."""

    tier: Tier
    license: Annotated[str, Field(description="SPDX id, written into the GGUF")]
    hub: Annotated[HubSource | None, Field(description="null where the tier descends from the teacher")]
    distill: Annotated[Distill | None, Field(description="null where the tier has its own hub repository")]
    convert: Convert | None = None
    calibrate: Calibrate | None = None
    recipes: dict[Target, Chosen] | None = None
    sensitivity: Sensitivity = Field(default_factory=Sensitivity)
    shard: Shard | None = None

    @model_validator(mode="after")
    def _complete(self) -> TierFile:
        if self.tier in GGUF_TIERS:
            if (self.hub is None) == (self.distill is None):
                raise ValueError(f"{self.tier} needs exactly one of 'distill' and 'hub'")
            if self.convert is None or self.calibrate is None or set(self.recipes or {}) != set(Target):
                raise ValueError(f"{self.tier} needs 'convert', 'calibrate' and 'recipes' for {', '.join(Target)}")
            if self.shard is not None:
                raise ValueError(f"'shard' belongs to {Tier.LARGE}")
            return self
        if self.shard is None or any((self.distill, self.convert, self.calibrate, self.recipes)):
            raise ValueError(f"{self.tier} needs 'shard' and may have 'hub' (else it is the teacher), nothing else")
        return self
