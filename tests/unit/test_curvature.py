"""Predicted against measured: how far a changed matrix moves a model's predictions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)  # fmt: skip

from pipeline.stages.curvature import Curvature
from pipeline.stages.golden import Request

SIZES: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": None, "initializer_range": 0.3,
}  # fmt: skip
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**SIZES)),
    "gemma2, soft caps and scaled embeddings": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES)),
}
REQUESTS = [
    Request(id=str(n), prompt=[], forced=[(7 * n + 5 * i) % 48 for i in range(6 + n % 5)], prompt_length=4 + n % 3, max_tokens=0)
    for n in range(6)
]  # fmt: skip
DRAWS = 400


def _logits(model: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return [torch.log_softmax(model(input_ids=torch.tensor([r.forced])).logits[0].double(), -1) for r in REQUESTS]


def _measured(before: list[torch.Tensor], after: list[torch.Tensor]) -> tuple[float, float]:
    """Nats over all prompt positions, and over all that predict an answer."""
    prompt = answer = 0.0
    for request, p, q in zip(REQUESTS, before, after, strict=True):
        kl = (p.exp() * (p - q)).sum(-1)
        first = request.prompt_length - 1 if request.prompt_length < len(request.forced) else len(kl)
        prompt, answer = prompt + float(kl[:first].sum()), answer + float(kl[first:].sum())
    return prompt, answer


@pytest.mark.parametrize("name", MODELS)
def test_every_matrix_predicts_what_its_change_does(name: str) -> None:
    """Each matrix is changed a little; prompt and answer positions part from before as far as was predicted."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = MODELS[name]().eval()
    before = _logits(model)
    curvature = Curvature(model, REQUESTS, draws=DRAWS)
    moved: dict[int, torch.Tensor] = {}
    changes: dict[int, tuple[Any, torch.Tensor]] = {}
    modules = dict(model.named_modules())
    for matrix in curvature.matrices():
        weight = modules[matrix.name].weight
        if id(weight) not in changes:
            changes[id(weight)] = weight, torch.randn_like(weight) * 0.003 * weight.abs().mean()
        found = matrix.moved(changes[id(weight)][1], curvature.rows, curvature.sequences)
        moved[id(weight)] = moved.get(id(weight), torch.zeros(())) + found
    assert len(moved) == 2 * 7 + (1 if curvature.tied else 2)
    for key, (weight, change) in changes.items():
        halves = (moved[key] ** 2 / 2).view(2, DRAWS, -1).mean(1).sum(-1)
        weight.data += change
        measured = _measured(before, _logits(model))
        weight.data -= change
        assert halves.tolist() == pytest.approx(measured, rel=0.2)
