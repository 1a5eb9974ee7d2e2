"""Evidence: what one check of one variant on one runner class found.

Rules: `Evidence` holds what the same files give again on the same kind of machine (tokens, quality, bytes); wall-clock
figures stand apart in `Measurement`, so that repeating a release repeats its digests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import floor
from typing import Annotated, Literal

from pydantic import Field

from pipeline.catalog.names import RunnerClass, Target
from pipeline.manifest.encoding import Count, Record, Sha256

Fraction = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]


class File(Record):
    """One file of a variant; `name` is relative to the variant's folder, `size` in bytes."""

    name: str
    size: Count
    sha256: Sha256


class Answer(Record):
    """What a golden prompt was answered with; `tokens` are the generated token ids without the end token."""

    id: str
    tokens: list[Count]
    passed: bool


class Interval(Record):
    """Where 95 of 100 values lie that other prompts of the same kind would have given (percentile bootstrap)."""

    low: Amount
    high: Amount


class Family(Record):
    """One prompt family's quality, each figure as in `Quality`."""

    prompts: Count
    exact_match: Fraction
    mean_kl: Amount
    answer_kl: Amount | None = None
    mean_kl_interval: Interval | None = None
    p99_kl: Amount | None = None
    perplexity_ratio: Amount | None = None


class Quality(Record):
    """Quality over all golden prompts.

    `exact_match` is the mean over families; `mean_kl` and `p99_kl` (nats) compare next-token distributions with the
    unquantized tier over all prompt and answer positions, `answer_kl` over those that predict the answer;
    `perplexity_ratio` is perplexity on the expected answers divided by the unquantized tier's.
    """

    exact_match: Fraction
    mean_kl: Amount
    p99_kl: Amount
    perplexity_ratio: Amount
    families: dict[str, Family]
    answer_kl: Amount | None = None
    mean_kl_interval: Interval | None = None
    exact_match_interval: Interval | None = None


class Memory(Record):
    """Bytes on disk, and weight bytes read to decode one token (all of a dense model but unused embedding rows)."""

    model_bytes: Count
    bytes_per_token: Count


class Instructions(Record):
    """Instructions the guest executed inside the decoder, counted by an emulator: the same at every repetition.

    `prompt` is over all prompts, `prompt_tokens` of them; `generated` over `steps` decodes of one token each. Memory
    traffic does not show in them: `Memory.bytes_per_token` stands beside.
    """

    emulator: str
    cpu: str
    prompt: Count
    prompt_tokens: Count
    generated: Count
    steps: Count

    @property
    def per_token(self) -> float | None:
        """Instructions for each generated token; None where nothing was generated beyond a first token."""
        return self.generated / self.steps if self.steps else None


class Evidence(Record):
    """One check's repeatable findings.

    `stand_in` says what was used instead where the hardware that the runner class names was not there; such evidence
    shows that the files work, and proves nothing about that hardware.
    """

    schema_version: Literal[1] = 1
    variant: str
    runner: RunnerClass
    files: list[File]
    golden_sha256: Sha256
    engine: dict[str, str]
    deterministic: bool
    answers: list[Answer]
    quality: Quality
    memory: Memory
    instructions: Instructions | None = None
    stand_in: str | None = None

    def strays(self, files: Iterable[File], golden_sha256: str) -> str | None:
        """Return what else it is of, None where it is of exactly these files and these golden prompts."""
        if {(f.name, f.sha256) for f in self.files} != {(f.name, f.sha256) for f in files}:
            return "other files"
        return None if self.golden_sha256 == golden_sha256 else "other golden prompts"


class Missing(Record):
    """A check that could not be made here, and why."""

    schema_version: Literal[1] = 1
    variant: str
    runner: RunnerClass
    missing: str


class Difference(Record):
    """Where a target's tokens part from the reference's: prompt, position among the generated tokens, and the
    reference's margin there (the gap of its two highest logits)."""

    id: str
    position: Count
    margin: Amount


class Agreement(Record):
    """One target against the reference: teacher-forced KL (nats), over all positions and at the worst, and differences.

    `emulator` is what stood in for the target's processor, None where the run was native.
    """

    target: Target
    emulator: str | None = None
    mean_kl: Amount
    max_kl: Amount
    differences: list[Difference]
    holds: bool


class Certificate(Record):
    """The same file on all targets: equal tokens, or differences at near ties alone.

    `model_sha256` is the file, `reference` the target compared with, `prompts` the golden prompts asked.
    """

    schema_version: Literal[1] = 1
    model_sha256: Sha256
    reference: Target
    prompts: list[str]
    margin_max: Amount
    mean_kl_max: Amount
    targets: list[Agreement]
    missing: dict[Target, str] = Field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every target was compared and agrees."""
        return not self.missing and all(target.holds for target in self.targets)


class Certificates(Record):
    """The certificates of a tier's files."""

    certificates: list[Certificate]


class Percentiles(Record):
    """Milliseconds."""

    p50: Amount
    p95: Amount


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile, interpolated linearly between the two nearest values (R-7, as NumPy's default)."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


class Measurement(Record):
    """One check's wall-clock figures.

    `ttft_ms` is from the prompt's first token going in to the first token coming out, `per_token_ms` between later
    tokens, `inference_ms` a whole golden prompt; `peak_rss_bytes` is of the process that decoded (of all ranks together
    where there are several); `machine` says where (CPU model, cores, kernel, board, GPU). `joules_per_inference` is
    measured or absent, never estimated. `throttled` names what held the processor back during the run.
    """

    schema_version: Literal[1] = 1
    variant: str
    runner: RunnerClass
    ttft_ms: Percentiles
    per_token_ms: Percentiles
    inference_ms: Percentiles
    peak_rss_bytes: Count
    machine: dict[str, str]
    joules_per_inference: Amount | None = None
    temperature_c: float | None = None
    throttled: list[str] = Field(default_factory=list)
