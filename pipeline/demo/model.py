"""The demo teacher's architecture: a small Llama with untied embeddings.

Rules: initial weights depend on the recipe alone; nothing else draws from torch's random generator.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.demo.draw import Rng
from pipeline.demo.initial import prepare
from pipeline.demo.recipe import Recipe
from pipeline.demo.tokenizer import BOS, EOS, MAX_TOKENS, PAD, VOCAB_SIZE


def config(recipe: Recipe) -> LlamaConfig:
    """The Hugging Face configuration of the recipe's shape."""
    shape = recipe.shape
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=MAX_TOKENS,
        rms_norm_eps=1e-5,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )


def blank(recipe: Recipe) -> LlamaForCausalLM:
    """An untrained model in f32."""
    torch.manual_seed(Rng.of(f"{recipe.seed}/weights").below(2**31))
    model = LlamaForCausalLM(config(recipe))
    prepare(model, recipe.shape)
    return model
