"""What the demo teacher is made of and how long it is trained; every field changes the weights.

Rules: constructors refuse shapes the release cannot use: rows that k-quants cannot block (256 values a
block) and heads that tensor parallelism of degree 2 cannot share out.
"""

from __future__ import annotations

from dataclasses import dataclass

K_QUANT_BLOCK = 256


@dataclass(frozen=True)
class Shape:
    """The Llama's dimensions; `hidden`, `ffn` and `head_dim` count values, the others count things."""

    hidden: int = 256
    ffn: int = 512
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2

    def __post_init__(self) -> None:
        """Raise ValueError for a shape that no variant could be made of."""
        if self.hidden % K_QUANT_BLOCK or self.ffn % K_QUANT_BLOCK or self.hidden <= 0 or self.ffn <= 0:
            raise ValueError(f"hidden and ffn must be positive multiples of {K_QUANT_BLOCK}: {self}")
        if self.kv_heads < 2 or self.kv_heads % 2 or self.heads % self.kv_heads or self.hidden % self.heads:
            raise ValueError(f"heads must divide hidden, an even number of kv heads the heads: {self}")
        if self.layers < 1:
            raise ValueError(f"a model needs a layer: {self}")

    @property
    def head_dim(self) -> int:
        """Values in one attention head."""
        return self.hidden // self.heads


@dataclass(frozen=True)
class Recipe:
    """How the weights are made.

    `batch` counts examples a step and `chunks` the forward passes it is cut into, by length;
    learning rates are those of the plateau; `warmup` and `decay` are steps, the last within `steps`;
    `prompt_weight` is what a prompt token weighs in the loss where an answer token weighs 1;
    `mix` names a family, or `drill` for conversations, once for every part it has in a batch, and from step
    `late_from` on `late_mix` does: copying is learned first, then arithmetic and thresholds get more of a batch.
    """

    seed: str = "demo"
    shape: Shape = Shape()
    steps: int = 1350
    batch: int = 48
    chunks: int = 3
    muon_lr: float = 0.02
    adamw_lr: float = 3e-3
    warmup: int = 40
    decay: int = 590
    prompt_weight: float = 0.1
    clip_norm: float = 1.0
    checkpoint_every: int = 50
    mix: tuple[str, ...] = ("fact", "total", "total", "diagnosis", "summary", "lookup", "drill")
    late_from: int = 600
    late_mix: tuple[str, ...] = (*("total",) * 3, *("diagnosis",) * 2, "fact", "summary", "lookup")

    def __post_init__(self) -> None:
        """Raise ValueError for counts that do not fit together."""
        if min(self.steps, self.batch, self.chunks, self.checkpoint_every) < 1 or self.batch % self.chunks:
            raise ValueError(f"counts must be positive and chunks must divide the batch: {self}")
        if min(self.warmup, self.decay) < 1 or not (self.mix and self.late_mix):
            raise ValueError(f"warmup and decay take a step at least, and no mix is empty: {self}")

    def mix_at(self, step: int) -> tuple[str, ...]:
        """The mix of a step, counted from 0."""
        return self.mix if step < self.late_from else self.late_mix

    def pace(self, step: int) -> float:
        """The share of the plateau's learning rate at a step, counted from 0.

        Warmup, stable, decay: Hu et al., MiniCPM, 2024, arXiv:2404.06395.
        """
        rising = (step + 1) / self.warmup
        falling = (self.steps - step) / self.decay
        return max(0.01, min(1.0, rising, falling))


RECIPE = Recipe()
