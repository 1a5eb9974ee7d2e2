"""How many requests at once, of how many tokens: from the shards, and the memory of the GPUs or of this machine.

Bytes: the weights as they are computed with (bfloat16 on GPUs, f32 on a CPU); a token's keys and values in all layers;
and what transformers' paged attention takes without flash attention: a copy of one layer's keys and values for all
heads, and a mask of the batch by all tokens of the cache (transformers, `continuous_batching/cache.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import StageError
from pipeline.manifest.statement import VariantEntry
from pipeline.serving.large.batching import BATCH
from pipeline.serving.node.sizing import LEAST_WORK, Model

GPU_SLOTS, CPU_SLOTS = 64, 8
STORED = {"bf16": 2, "f16": 2, "f32": 4}


def model(entry: VariantEntry, config: Mapping[str, Any], matrices: str, *, gpu: bool) -> Model:
    """Return what a large variant takes over all ranks.

    Args:
        config: of `config.json`.
        matrices: the type the shards store matrices in.

    Raises:
        StageError: the configuration lacks a figure.
    """
    width = 2 if gpu else 4
    try:
        hidden, heads, layers = (config[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
        groups = config.get("num_key_value_heads") or heads
        head = config.get("head_dim") or hidden // heads
        vocabulary = config["vocab_size"]
    except KeyError as e:
        raise StageError(f"config.json lacks {e}", hint="serve it with vLLM") from e
    stored = sum(f.size for f in entry.files if f.name.endswith(".safetensors"))
    cached = 2 * layers * groups * head * width
    read = (2 * heads + groups) * head * width
    return Model(
        weights=stored * width // STORED[matrices],
        per_token=cached + read + BATCH * width,
        scores_per_token=0,
        work=LEAST_WORK + BATCH * (BATCH + 8 * hidden) * width + GPU_SLOTS * vocabulary * 4,
        context=entry.model.context,
    )
