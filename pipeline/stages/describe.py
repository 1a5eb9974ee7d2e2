"""What a variant's files say of the model: its configuration and the bytes a decoder moves.

Rules: read from the released files alone (GGUF header, config.json and shards), never from the build.
"""

from __future__ import annotations

import math
from pathlib import Path

from pipeline.errors import StageError
from pipeline.manifest import gguf
from pipeline.manifest.evidence import Memory
from pipeline.manifest.statement import ModelConfig
from pipeline.model import hf
from pipeline.model.layout import DTYPES, Layout
from pipeline.stages.project import MODEL

_WIDTH = {"F32": 4, "BF16": 2, "F16": 2}  # bytes


def model_config(folder: Path) -> ModelConfig:
    """Return the model configuration of a variant's folder; raises StageError where a needed entry is missing."""
    return _gguf_config(folder / MODEL) if (folder / MODEL).exists() else _shards_config(folder)


def memory(folder: Path) -> Memory:
    """Return model bytes, and the weight bytes read to decode one token.

    A dense decoder reads every weight once a token, but of a token embedding that is not the output too only one row
    (decoding is bound by reading weights: Pope et al. 2022, arXiv:2211.05102, section 2).
    """
    total = sum(p.stat().st_size for p in folder.iterdir() if p.suffix in {".gguf", ".safetensors"})
    tensors = _gguf_tensors(folder / MODEL) if (folder / MODEL).exists() else _shard_tensors(folder)
    untied = {"output.weight", "lm_head.weight"} & tensors.keys()
    read = sum(
        size // rows if untied and name in {"token_embd.weight", "model.embed_tokens.weight"} else size
        for name, (size, rows) in tensors.items()
    )
    return Memory(model_bytes=total, bytes_per_token=read)


def _header(path: Path) -> gguf.Header:
    with path.open("rb") as f:
        return gguf.read_header(f, path.stat().st_size)


def _gguf_tensors(path: Path) -> dict[str, tuple[int, int]]:
    """Bytes and rows of every tensor."""
    return {t.name: (t.size, t.shape[-1]) for t in _header(path).tensors}


def _shard_tensors(folder: Path) -> dict[str, tuple[int, int]]:
    layout = Layout.read(folder)
    return {
        name: (math.prod(shape) * _WIDTH[DTYPES[layout.matrices if len(shape) > 1 else layout.norms]], shape[0])
        for name, shape in layout.shapes.items()
    }


def _gguf_config(path: Path) -> ModelConfig:
    header = _header(path)
    architecture = str(header.metadata.get("general.architecture"))

    def number(key: str) -> int:
        value = header.metadata.get(f"{architecture}.{key}")
        if not isinstance(value, int):
            raise StageError(f"{path}: no {architecture}.{key} in its metadata", hint="convert the tier again")
        return value

    vocabulary = header.metadata.get("tokenizer.ggml.tokens")
    return ModelConfig(
        architecture=architecture,
        parameters=sum(math.prod(t.shape) for t in header.tensors),
        layers=number("block_count"),
        hidden=number("embedding_length"),
        vocabulary=vocabulary.length if isinstance(vocabulary, gguf.Array) else number("vocab_size"),
        context=number("context_length"),
    )


def _shards_config(folder: Path) -> ModelConfig:
    config, layout = hf.read_json(folder / hf.CONFIG), Layout.read(folder)
    try:
        return ModelConfig(
            architecture=config["model_type"],
            parameters=sum(math.prod(shape) for shape in layout.shapes.values()),
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            vocabulary=config["vocab_size"],
            context=config["max_position_embeddings"],
            tensor_parallel=layout.degree,
        )
    except KeyError as e:
        raise StageError(f"{folder}: config.json has no {e}", hint="shard the model again") from e
