"""Exact match of greedy answers.

Rules: an answer counts only if it equals the expected text; prompts of equal length are decoded together, so
no padding can change a logit; decoding is greedy and stops at the end of text or after `MAX_NEW_TOKENS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from pipeline.demo.corpus import Example
from pipeline.demo.tokenizer import EOS, decode, prompt_ids

MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class FamilyScore:
    """How many of a family's examples were answered exactly."""

    family: str
    right: int
    asked: int

    @property
    def exact_match(self) -> float:
        """The share of right answers, 0 to 1."""
        return self.right / self.asked


def _answer_ids(row: list[int]) -> list[int]:
    return row[: row.index(EOS)] if EOS in row else row


@torch.inference_mode()
def _decode_together(model: LlamaForCausalLM, prompts: Tensor) -> list[list[int]]:
    """Greedy answers to prompts of shape (rows, tokens)."""
    produced = torch.empty(prompts.size(0), 0, dtype=torch.long)
    current, cache = prompts, None
    while produced.size(1) < MAX_NEW_TOKENS and not (produced == EOS).any(1).all():
        output = model(input_ids=current, past_key_values=cache, use_cache=True)
        current, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
        produced = torch.cat((produced, current), 1)
    return [_answer_ids(row) for row in produced.tolist()]


def answers(model: LlamaForCausalLM, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """The model's greedy answer to each prompt, in the same order."""
    encoded = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    by_length = sorted(range(len(prompts)), key=lambda place: len(encoded[place]))
    found = [""] * len(prompts)
    for _, group in groupby(by_length, key=lambda place: len(encoded[place])):
        places = list(group)
        rows = _decode_together(model, torch.tensor([encoded[place] for place in places]))
        for place, row in zip(places, rows, strict=True):
            found[place] = decode(tokenizer, row)
    return found


def accuracy(model: LlamaForCausalLM, tokenizer: Tokenizer, examples: Iterable[Example]) -> tuple[FamilyScore, ...]:
    """One score a family, in alphabetical order."""
    wanted = list(examples)
    given = answers(model, tokenizer, [example.prompt for example in wanted])
    asked = Counter(example.family for example in wanted)
    right = Counter(example.family for answer, example in zip(given, wanted, strict=True) if answer == example.answer)
    return tuple(FamilyScore(family, right[family], asked[family]) for family in sorted(asked))
