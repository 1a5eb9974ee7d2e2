"""Small real models with random weights, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|pad|>")
TEXT = ("where is the black tea?", "aisle 12 shelf C", "total of rice 17 and soap 42?", "the pump reads temp 71")
SHAPE = {
    "vocab_size": 300,  # divides by 2 but not by 8
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 4,
}


def llama(**changes: object) -> LlamaConfig:
    return LlamaConfig(**{**SHAPE, "tie_word_embeddings": False, **changes})


def qwen2(**changes: object) -> Qwen2Config:
    """Biases on queries, keys and values."""
    return Qwen2Config(**{**SHAPE, "tie_word_embeddings": False, **changes})


def qwen3(**changes: object) -> Qwen3Config:
    """Norms on queries and keys, and heads whose width does not follow from the hidden size."""
    return Qwen3Config(**{**SHAPE, "head_dim": 32, "tie_word_embeddings": False, **changes})


def save(
    folder: Path,
    config: PreTrainedConfig,
    *,
    seed: int = 0,
    template: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a model whose tokens differ clearly in their logits, and a tokenizer."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1 if parameter.ndim > 1 else 0.05)
    model.to(dtype).save_pretrained(folder)
    _tokenizer(template).save_pretrained(folder)
    return folder


def _tokenizer(template: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<|pad|>", model_max_length=256
    )
    if template:
        fast.chat_template = TEMPLATE
    return fast
