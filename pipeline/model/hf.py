"""A model as a Hugging Face folder: what must be in it, what may not, and where each weight lies.

Rules: weights are safetensors, opened lazily; nothing in the folder is code or asks for code; every weight the index
names is in the file it names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import StageError

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
CODE = frozenset({".bin", ".pt", ".pth", ".pkl", ".py", ".so"})
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip


def check(folder: Path) -> None:
    """Raise StageError where `folder` is no model this pipeline can use; no weight is read."""
    for path in sorted(folder.rglob("*")):
        refuse_code(path, path.name)
    read_json(folder / CONFIG)
    weights(folder)


def refuse_code(path: Path, name: str) -> None:
    """Raise StageError where the file at `path`, called `name`, is code, a pickle, or asks for code."""
    if Path(name).suffix in CODE:
        raise StageError(f"{name}: code or a pickle in a model folder", hint="keep safetensors and JSON only")
    if name in {CONFIG, "tokenizer_config.json"} and "auto_map" in read_json(path):
        raise StageError(
            f"{name}: 'auto_map' asks to run code from the repository",
            hint="choose a model whose architecture is part of transformers",
        )


def read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """Return a JSON object; raises StageError where there is none."""
    if missing_ok and not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise StageError(f"{path}: not readable as JSON: {e}", hint="fetch the model again") from e
    if not isinstance(found, dict):
        raise StageError(f"{path}: not a JSON object", hint="fetch the model again")
    return found


def weights(folder: Path) -> dict[str, Path]:
    """Return the file of every weight, sorted by weight.

    Raises:
        StageError: there is no safetensors file, one is cut short, or it lacks a weight the index names.
    """
    held = {name: path for path in _files(folder) for name in _names(path)}
    if not held:
        raise StageError(f"{folder}: no weights as model*.safetensors", hint="choose a repository with safetensors")
    for name, file in read_json(folder / INDEX, missing_ok=True).get("weight_map", {}).items():
        if name not in held or held[name].name != file:
            raise StageError(f"{folder / INDEX}: {name} is not in {file}", hint="fetch the model again")
    return dict(sorted(held.items()))


def end_tokens(folder: Path) -> frozenset[int]:
    """Return the tokens that end an answer, as the generation config says, else the model's config."""
    for file in ("generation_config.json", CONFIG):
        found = read_json(folder / file, missing_ok=True).get("eos_token_id")
        if found is not None:
            return frozenset(found if isinstance(found, list) else [found])
    return frozenset()


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files, the chat template and the generation config, as they are."""
    for name in TOKENIZER:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def _files(folder: Path) -> Iterator[Path]:
    named = set(read_json(folder / INDEX, missing_ok=True).get("weight_map", {}).values())
    yield from (path for path in sorted(folder.glob("model*.safetensors")) if not named or path.name in named)


def _names(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as f:
            return list(f.keys())
    except (SafetensorError, OSError) as e:
        raise StageError(f"{path}: not a whole safetensors file: {e}", hint="fetch the model again") from e
