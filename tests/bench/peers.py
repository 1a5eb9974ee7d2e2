"""Further models, so that what is measured on the demo teacher is no artefact of one model.

    python -m tests.bench.peers qwen3 build/peers/qwen3
    python -m tests.bench.peers qwen2 build/peers/qwen2 --device cuda

All are trained on the demo's corpus, from noise; the two smaller ones on a CPU for minutes rather than hours: they know
three families of five. Seeded, on one thread.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import (
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.demo.batches import Chunk, batch
from pipeline.demo.folder import greedy
from pipeline.demo.learner import Learner
from pipeline.demo.recipe import Recipe
from pipeline.demo.tokenizer import BOS, EOS, MAX_TOKENS, PAD, VOCAB_SIZE, build, packaged

COMMON = {
    "vocab_size": VOCAB_SIZE, "max_position_embeddings": MAX_TOKENS, "bos_token_id": BOS, "eos_token_id": EOS,
    "pad_token_id": PAD,
}  # fmt: skip


def qwen3() -> Any:
    """Queries and keys are normalised, embeddings untied: 10 million parameters."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            **COMMON, hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
            num_key_value_heads=2, head_dim=64, tie_word_embeddings=False,
        )
    )  # fmt: skip


def olmo2() -> Any:
    """Norms stand after attention and feed-forward, embeddings are tied; deep and narrow: 6 million parameters."""
    return Olmo2ForCausalLM(
        Olmo2Config(
            **COMMON, hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=4,
            num_key_value_heads=4, tie_word_embeddings=True,
        )
    )  # fmt: skip


def qwen2() -> Any:
    """Queries, keys and values have biases, embeddings are untied: 25 million parameters, for a GPU."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            **COMMON, hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8,
            num_key_value_heads=2, tie_word_embeddings=False,
        )
    )  # fmt: skip


MODELS = {
    "qwen3": (qwen3, Recipe(steps=300, decay=150, batch=36)),
    "olmo2": (olmo2, Recipe(steps=400, decay=200, batch=48)),
    "qwen2": (qwen2, Recipe(steps=1500, decay=700, batch=96)),
}


def untie(model: Any) -> None:
    """Give a model that was trained with one matrix for both ends two equal ones: llama.cpp's OLMo2 wants an output."""
    if model.config.tie_word_embeddings:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())


def train(name: str, out: Path, device: str = "cpu") -> None:
    """Write a trained model's folder; weights are stored in bfloat16 where a GPU trained them."""
    make, recipe = MODELS[name]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    learner, tokenizer = Learner(recipe, make().to(device)), build()
    bar = tqdm(range(recipe.steps), desc=name, file=sys.stderr)
    for step in bar:
        chunks = [Chunk(c.ids.to(device), c.weights.to(device)) for c in batch(tokenizer, recipe, step)]
        loss = learner.step(chunks, recipe.pace(step))
        bar.set_postfix(loss=f"{loss:.4f}")
    model = learner.model.to("cpu", torch.float32 if device == "cpu" else torch.bfloat16)
    untie(model)
    model.generation_config = greedy()
    model.save_pretrained(out)
    packaged(tokenizer).save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    train(args.model, args.out, args.device)
