"""What one decoding of a variant's golden prompts gave, whichever engine and machine it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.catalog.golden import GoldenPrompt
from pipeline.manifest.evidence import Instructions, Quality
from pipeline.ports.energy import Metered
from pipeline.stages.golden import GoldenRun

PASSES = 2  # decodings of all prompts, each in fresh contexts


@dataclass(frozen=True)
class Checked:
    """A run with its quality, and what the machine told of itself meanwhile.

    `metered` covers `PASSES` decodings of all prompts, the loading of the model included. `facts` are the engine's own
    of the machine (GPUs). `stand_in` is as in `Evidence`.
    """

    prompts: Sequence[GoldenPrompt]
    run: GoldenRun
    quality: Quality
    metered: Metered | None = None
    instructions: Instructions | None = None
    stand_in: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def joules_per_inference(self) -> float | None:
        """Joules for one golden prompt, None where the machine cannot tell."""
        joules = self.metered.joules if self.metered else None
        return None if joules is None else joules / (PASSES * len(self.prompts))
