"""How fast a machine serves a model, what it draws and what it costs: published figures, or a release's evidence.

Rules: every figure names its source; an assumption is called one. A prompt's tokens are evaluated one request after
another (they are bound by arithmetic), tokens are decoded for all slots together (they are bound by memory).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from math import log
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.catalog.document import Document, parse_yaml
from pipeline.catalog.names import BOARDS, RunnerClass
from pipeline.catalog.params import Cost
from pipeline.errors import CatalogError
from pipeline.manifest.evidence import Measurement
from pipeline.manifest.statement import Manifest

Amount = Annotated[float, Field(ge=0)]
_Z95 = 1.6449  # standard normal quantile of 95 %


class Figures(Document):
    """One kind of machine with one model."""

    machine: Annotated[str, Field(description="what it is, in words")]
    overhead_ms: Annotated[Amount, Field(description="ms of a request that hold nobody else up: HTTP, tokenizer")] = 0.0
    prompt_ms: Annotated[Amount, Field(description="ms to evaluate any prompt: reading the weights once")] = 0.0
    prompt_token_ms: Annotated[Amount, Field(description="ms for each token of a prompt that is not kept")] = 0.0
    token_ms: Annotated[Amount, Field(description="ms between two tokens of an answer that is decoded alone")]
    slots: Annotated[int, Field(ge=1, description="answers decoded at once")] = 1
    slowdown: Annotated[Amount, Field(description="share a token takes longer for each other answer at work")] = 0.0
    spread: Annotated[Amount, Field(description="standard deviation of the logarithm of a request's time")] = 0.0
    kept: Annotated[int, Field(ge=0, description="prompts whose evaluation is kept for when they come again")] = 0
    context: Annotated[int, Field(ge=1, description="tokens a slot holds")] = 4096
    watts_idle: Annotated[Amount, Field(description="that it draws with nothing to do")] = 0.0
    watts_busy: Annotated[Amount, Field(description="that it draws at work")] = 0.0
    usd_h: Annotated[Amount, Field(description="USD an hour, without electricity")] = 0.0
    sources: Annotated[dict[str, str], Field(description="where each figure given is from, by its key")]

    @model_validator(mode="after")
    def _sourced(self) -> Figures:
        given = self.model_fields_set - {"machine", "sources"}
        if missing := sorted(given - set(self.sources)):
            raise ValueError(f"sources names no source of {', '.join(missing)}")
        return self


class Published(Document):
    """A table of figures by name."""

    schema_version: Literal[1] = 1
    figures: dict[str, Figures]


@cache
def published() -> dict[str, Figures]:
    """Return the figures that come with the package."""
    text = (files(__package__) / "figures.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, Published, "figures.yaml").figures


def named(found: dict[str, Figures], name: str) -> Figures:
    """Return figures by their name; raises CatalogError, which lists those there are."""
    if name not in found:
        raise CatalogError(f"no figures {name!r}", hint=f"there are {', '.join(sorted(found))}")
    return found[name]


def evidenced(manifest: Manifest, variant: str, costs: Mapping[RunnerClass, Cost], base: Figures) -> Figures:
    """Return figures of a variant from a verified release: of its own kind of board, where one measured it.

    Raises:
        CatalogError: the release has no such variant, or nobody timed it.
    """
    entry = next((v for v in manifest.predicate.variants if v.name == variant), None)
    if entry is None:
        raise CatalogError(f"the release has no {variant}", hint="name a variant of it in the scenario")
    timed = sorted(entry.measurements, key=lambda m: m.runner not in BOARDS)
    if not timed:
        raise CatalogError(f"nobody timed {variant}", hint="check it on a machine, or use published figures")
    return measured(timed[0], costs[timed[0].runner], base)


def measured(found: Measurement, cost: Cost, base: Figures) -> Figures:
    """Return what a check measured of a variant, with the rest of `base`: slots, context and idle power.

    Evidence times whole prompts: their share for each token is unknown, so every prompt takes as long.
    """
    ttft, token = found.ttft_ms, found.per_token_ms
    ratio = max(ttft.p95 / ttft.p50, 1.0) if ttft.p50 else 1.0
    joules, seconds = found.joules_per_inference, found.inference_ms.p50 / 1000
    changed = {
        "machine": found.machine.get("board") or found.machine.get("cpu", str(found.runner)),
        "overhead_ms": 0.0,
        "prompt_ms": ttft.p50,
        "prompt_token_ms": 0.0,
        "token_ms": token.p50,
        "spread": log(ratio) / _Z95,
        "watts_busy": joules / seconds if joules and seconds else cost.watts,
        "usd_h": cost.device_usd / cost.life_hours,
    }
    source = f"measured: {found.variant} on {found.runner}"
    sources = {**base.sources, **dict.fromkeys(changed, source), "usd_h": cost.source}
    return Figures.model_validate({**base.model_dump(), **changed, "sources": sources})
