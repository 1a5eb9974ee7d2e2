"""Greedy answers to golden prompts, and how many of them are right.

Rules: prompts of equal length are decoded together, so no padding can change a logit; an answer ends before its end
token or after the prompt's `max_tokens`; whether it is right is the golden prompt's to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch

from pipeline.catalog.golden import GoldenPrompt
from pipeline.model.chat import Chat

TOGETHER = 64


def exact_match(model: Any, chat: Chat, golden: Sequence[GoldenPrompt]) -> dict[str, float]:
    """Return the share of right answers by family, 0 to 1, rounded to four places."""
    asked = Counter(prompt.family for prompt in golden)
    found = answers(model, chat, golden)
    right = Counter(prompt.family for prompt, text in zip(golden, found, strict=True) if prompt.accepts(text))
    return {family: round(right[family] / asked[family], 4) for family in sorted(asked)}


def answers(model: Any, chat: Chat, golden: Sequence[GoldenPrompt]) -> list[str]:
    """Return the model's answers, in the prompts' order."""
    encoded = [chat.prompt(prompt.prompt) for prompt in golden]
    places = sorted(range(len(golden)), key=lambda place: len(encoded[place]))
    found = [""] * len(golden)
    for _, group in groupby(places, key=lambda place: len(encoded[place])):
        alike = list(group)
        for together in (alike[at : at + TOGETHER] for at in range(0, len(alike), TOGETHER)):
            limit = max(golden[place].max_tokens for place in together)
            rows = _decode(model, [encoded[place] for place in together], limit, chat.ends)
            for place, row in zip(together, rows, strict=True):
                found[place] = chat.text(_until_end(row[: golden[place].max_tokens], chat.ends))
    return found


@torch.inference_mode()
def _decode(model: Any, prompts: list[list[int]], limit: int, ends: frozenset[int]) -> list[list[int]]:
    current, cache = torch.tensor(prompts, device=model.device), None
    stops = torch.tensor(sorted(ends), device=model.device)
    produced = current[:, :0]
    while produced.size(1) < limit and not torch.isin(produced, stops).any(1).all():
        output = model(input_ids=current, past_key_values=cache, use_cache=True, logits_to_keep=1)
        current, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
        produced = torch.cat((produced, current), 1)
    rows: list[list[int]] = produced.tolist()
    return rows


def _until_end(row: list[int], ends: frozenset[int]) -> list[int]:
    return row[: next((place for place, token in enumerate(row) if token in ends), len(row))]
