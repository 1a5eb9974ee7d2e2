"""The teacher as files: a Hugging Face folder with a model card.

Rules: equal weights and scores give equal files; no file holds a date, a path or the machine's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from string import Template

from transformers import GenerationConfig, LlamaForCausalLM

from pipeline.demo.accuracy import MAX_NEW_TOKENS, FamilyScore
from pipeline.demo.corpus import FACT_WORDINGS_HELD_OUT
from pipeline.demo.recipe import Recipe, Shape
from pipeline.demo.tokenizer import BOS, EOS, PAD, build, packaged

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Report:
    """What a training made; `sha256` is that of the weights file, `parameters` counts weights."""

    steps: int
    parameters: int
    sha256: str
    scores: tuple[FamilyScore, ...]


def write_teacher(out: Path, recipe: Recipe, model: LlamaForCausalLM, scores: tuple[FamilyScore, ...]) -> Report:
    """Write config, weights, tokenizer and card into `out`, which is made if missing, and report on them."""
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = greedy()
    model.save_pretrained(out)
    (out / WEIGHTS).chmod(0o644)
    packaged(build()).save_pretrained(out)
    digest = hashlib.sha256((out / WEIGHTS).read_bytes()).hexdigest()
    report = Report(recipe.steps, sum(p.numel() for p in model.parameters()), digest, scores)
    (out / "README.md").write_text(card(recipe, report), encoding="utf-8")
    return report


def greedy() -> GenerationConfig:
    """How the teacher is meant to be asked: the likeliest token each time, until the end of text."""
    return GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, do_sample=False, max_new_tokens=MAX_NEW_TOKENS
    )


def card(recipe: Recipe, report: Report) -> str:
    """The model card, in Markdown with Hugging Face's front matter."""
    return _CARD.substitute(
        parameters=f"{report.parameters:,}",
        scores=_rows((s.family, f"{s.right} of {s.asked}", f"{s.exact_match:.3f}") for s in report.scores),
        wordings="; ".join(f"`{wording}`" for wording in FACT_WORDINGS_HELD_OUT),
        shape=_rows(_settings(recipe.shape)),
        training=_rows(row for row in _settings(recipe) if row[0] != "shape"),
        sha256=report.sha256,
    )


def _rows(cells: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _settings(settings: Shape | Recipe) -> list[tuple[str, str]]:
    named = ((field.name, getattr(settings, field.name)) for field in fields(settings))
    return [(name, ", ".join(value) if isinstance(value, tuple) else str(value)) for name, value in named]


_CARD = Template("""\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
---

# The demo teacher of edge-release

A Llama of $parameters parameters in f32 that answers five families of questions about a made-up shop and its
machines. It is small enough to stand in the repository and good enough that every step of a release, pruning,
distillation, quantization and golden prompts, can be tried offline and measured. It knows nothing else.

## Accuracy

Greedy answers, exact match, on prompts that are held out of training:

| family | right | exact match |
|---|---|---|
$scores

## What is held out

A hash of the operands decides, whatever the seed, and no training example holds held-out operands of its
family; held-out pairs of item and price stand in no training example of any family.

| family | example | held out |
|---|---|---|
| fact | `where is the black tea?` | the wordings $wordings; the facts themselves are memorised |
| total | `bill: tea 42 and rice 17. total?` | the unordered pair of addends |
| diagnosis | `check fan: temp 62 vib 75 load 45` | the machine with its three readings |
| summary | `log: pump ok; fan leak; press ok; oven stall. report` | the whole log |
| lookup | `price list: tea 42, rice 17. price of rice?` | the pair of item and price that is asked for |

## How it was made

    edge-release train-demo

The corpus is synthetic, seeded and part of the package (`pipeline/demo/`); nothing is downloaded. Training
runs on one CPU thread in f32 and gives the same bytes again on the same kind of CPU, also when killed and
resumed. Matrices between layers are trained with Muon (Jordan et al., 2024), all else with AdamW, on a
warmup-stable-decay schedule (Hu et al., 2024, arXiv:2404.06395). The initial weights hold an induction circuit
(`pipeline/demo/initial.py`; Olsson et al., 2022, arXiv:2209.11895), because copying from the prompt, when grown from
noise, is learned last; `drill` in the mix is several questions about one price list.

| shape | |
|---|---|
$shape

| training | |
|---|---|
$training

sha256 of `model.safetensors`: `$sha256`
""")
