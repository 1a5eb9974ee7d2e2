"""Evidence: what one check of one variant on one runner class found.

Rules: `Evidence` holds what the same files give again on the same kind of machine (tokens, quality, bytes); wall-clock
figures stand apart in `Measurement`, so that repeating a release repeats its digests.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.catalog.names import RunnerClass
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


class Family(Record):
    """One prompt family's quality; `mean_kl` in nats over all positions."""

    prompts: Count
    exact_match: Fraction
    mean_kl: Amount


class Quality(Record):
    """Quality over all golden prompts.

    `exact_match` is the mean over families; `mean_kl` and `p99_kl` (nats) compare next-token distributions with the
    unquantized tier over all prompt and answer positions; `perplexity_ratio` is perplexity on the expected answers
    divided by the unquantized tier's.
    """

    exact_match: Fraction
    mean_kl: Amount
    p99_kl: Amount
    perplexity_ratio: Amount
    families: dict[str, Family]


class Memory(Record):
    """Bytes on disk, and weight bytes read to decode one token (all of a dense model but unused embedding rows)."""

    model_bytes: Count
    bytes_per_token: Count


class Evidence(Record):
    """One check's repeatable findings."""

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


class Percentiles(Record):
    """Milliseconds."""

    p50: Amount
    p95: Amount


class Measurement(Record):
    """One check's wall-clock figures.

    `ttft_ms` is from the prompt's first token going in to the first token coming out, `per_token_ms` between later
    tokens, `inference_ms` a whole golden prompt; `peak_rss_bytes` is of the process that decoded (of all ranks together
    where there are several); `machine` says where (CPU model, cores, kernel).
    """

    schema_version: Literal[1] = 1
    variant: str
    runner: RunnerClass
    ttft_ms: Percentiles
    per_token_ms: Percentiles
    inference_ms: Percentiles
    peak_rss_bytes: Count
    machine: dict[str, str]
