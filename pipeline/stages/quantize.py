"""A variant's GGUF file, quantized by its recipe in this process, and those of its kin that are tuned to families.

Rules: what llama.cpp would ignore or abort on is refused before it starts; equal recipes of a tier give one file, made
once, checked by its digest when it serves again and shared by hard links; what is no longer any target's recipe is
removed, and so is a variant whose recipe is gone; where a tensor's rows do not fit the wanted type, what was taken
instead is reported and recorded.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.catalog.names import Target, Tier, Variant
from pipeline.catalog.recipe import Recipe
from pipeline.errors import CatalogError, StageError
from pipeline.manifest import gguf
from pipeline.manifest.encoding import canonical, sha256
from pipeline.manifest.tensor import Tensor
from pipeline.ports import files, llama, process
from pipeline.stages.project import MODEL, Project

RECIPE = "recipe.json"
LAYOUT = 1  # counts up when equal inputs come to give other bytes
_SUMS, _COUNTS = ".in_sum2", ".counts"  # of squared activations, and of tokens
FLOATS = frozenset({"F32", "F16", "BF16"})
# ggml_quantize_requires_imatrix and llama-quant.cpp's tensor_requires_imatrix.
TYPES_NEEDING_IMATRIX = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})
# Not among the tensors whose activations llama.cpp checks for: it would abort on them.
UNCHECKED = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")
BASES_NEEDING_IMATRIX = TYPES_NEEDING_IMATRIX | {"IQ2_M", "IQ3_XS", "Q2_K_S"}

_log = logging.getLogger(__name__)

Imatrix = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Quantized:
    """What `quantize` did: `reused` says that an earlier target's work served."""

    path: Path
    sha256: str
    reused: bool
    fallbacks: tuple[llama.Fallback, ...]


@dataclass(frozen=True)
class Inputs:
    """What a tier's quantized bytes depend on besides the recipe; hex SHA-256 each."""

    source: str
    imatrix: str
    library: str

    def key(self, recipe: Recipe) -> str:
        """Return the hex SHA-256 that names a recipe's file."""
        used = {"source": self.source, "library": self.library, "recipe": recipe.digest, "layout": LAYOUT}
        return sha256(canonical(used | ({"imatrix": self.imatrix} if recipe.imatrix else {})))


@dataclass(frozen=True)
class _Store:
    """A tier's unquantized model and importance matrix, and the folder of what was quantized from them."""

    folder: Path
    source: Path
    matrix: Path
    inputs: Inputs

    @classmethod
    def of(cls, project: Project, tier: Tier) -> _Store:
        source, matrix = project.gguf(tier), project.imatrix(tier)
        llama.header(source)
        llama.header(matrix)
        inputs = Inputs(files.sha256_file(source), files.sha256_file(matrix), llama.build_digest())
        return cls(project.build / "quantized" / tier, source, matrix, inputs)

    def kept(self, recipe: Recipe) -> Path:
        """Return where a recipe's file is kept."""
        return self.folder / f"{self.inputs.key(recipe)}.gguf"


def quantize(project: Project, variant: Variant) -> list[Quantized]:
    """Write a variant and its kin for which there are recipes, each into its folder: the model and its recipe.

    Raises:
        CatalogError: the recipe asks for what llama.cpp would ignore or abort on.
        StageError: the unquantized model or the importance matrix is missing or broken.
        ToolError: llama.cpp refuses; its last lines are in the message.
    """
    recipes = {kin: project.recipe(kin) for kin in project.found(variant)}
    for kin, recipe in recipes.items():
        refuse_unusable(recipe, _where(kin))
    store = _Store.of(project, variant.tier)
    with files.locked(store.folder / ".lock"), files.new_folder(project.variant(variant).parent) as folder:
        made = [_quantize(project, store, kin, recipe, folder / kin.name) for kin, recipe in recipes.items()]
        _prune(store.folder, {store.inputs.key(recipe) for recipe in _recipes(project, variant.tier)})
    return made


def _quantize(project: Project, store: _Store, variant: Variant, recipe: Recipe, folder: Path) -> Quantized:
    kept = store.kept(recipe)
    found = _reuse(kept)
    reused = found is not None
    if found is None:
        found = _make(kept, store.source, store.matrix if recipe.imatrix else None, recipe, variant)
    files.put(kept, folder / MODEL)
    (folder / RECIPE).write_bytes(_describe(recipe, store.inputs, found["fallbacks"]))
    fallbacks = tuple(llama.Fallback(**f) for f in found["fallbacks"])
    for f in fallbacks:
        _log.warning("%s: %s is %s, its rows do not fit %s", variant, f.tensor, f.taken, f.wanted)
    return Quantized(project.variant(variant) / MODEL, found["sha256"], reused, fallbacks)


def _recipes(project: Project, tier: Tier) -> list[Recipe]:
    """The recipes of a tier's variants, as far as there are any."""
    kin = chain.from_iterable(project.found(Variant(tier, target)) for target in Target)
    return [project.recipe(variant) for variant in kin if project.recipe_file(variant).exists()]


def refuse_unusable(recipe: Recipe, where: str) -> None:
    """Raise CatalogError where llama.cpp would ignore a recipe's types or need an importance matrix for them."""
    if recipe.base in FLOATS and recipe.tensors:
        raise CatalogError(
            f"{where}: llama.cpp ignores 'tensors' under base {recipe.base}",
            hint="choose a quantized base and give the other tensors their types in 'tensors'",
        )
    if recipe.imatrix:
        return
    wanting = [recipe.base] if recipe.base in BASES_NEEDING_IMATRIX else []
    wanting += [kind for kind in recipe.overrides.values() if kind in TYPES_NEEDING_IMATRIX]
    if wanting:
        raise CatalogError(
            f"{where}: {', '.join(dict.fromkeys(wanting))} without an importance matrix gives garbage",
            hint="write 'imatrix: true', or choose a type of three bits or more",
        )


def refuse_unmatched(recipe: Recipe, tensors: list[str], imatrix: Imatrix, where: str) -> None:
    """Raise CatalogError where a pattern matches no tensor, or gives one a type that its missing activations forbid."""
    first = {t: next((p for p in recipe.overrides if re.search(p, t)), None) for t in tensors}
    for pattern, kind in recipe.overrides.items():
        if not any(re.search(pattern, t) for t in tensors):
            raise CatalogError(f"{where}: pattern {pattern!r} matches no tensor", hint="mend or remove it")
        bare = [t for t in UNCHECKED if first.get(t) == pattern and t not in imatrix]
        if kind in TYPES_NEEDING_IMATRIX and bare:
            raise CatalogError(
                f"{where}: {bare[0]} as {kind} needs activations, which the importance matrix lacks for it",
                hint=f"give {bare[0]} a type of three bits or more",
            )


def used(imatrix: Imatrix, recipe: Recipe) -> Imatrix | None:
    """Return the part of an importance matrix that a recipe uses."""
    if not recipe.imatrix:
        return None
    return {name: values for name, values in imatrix.items() if name not in recipe.no_imatrix} or None


def matrices(header: gguf.Header) -> list[Tensor]:
    """Return the tensors that llama.cpp may quantize: matrices (llama-quant.cpp, `tensor_allows_quantization`)."""
    return [
        t for t in header.tensors if len(t.shape) > 1 and t.name.endswith("weight") and "_norm.weight" not in t.name
    ]


def load_imatrix(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the mean squared activations of each tensor, averaged as llama-quantize does.

    Raises:
        StageError: it is not a file of llama-imatrix.
    """
    parts = {t.name: t for t in llama.header(path).tensors if t.type == "F32"}
    names = sorted(name.removesuffix(_SUMS) for name in parts if name.endswith(_SUMS))
    if not names or parts.keys() != {name + part for name in names for part in (_SUMS, _COUNTS)}:
        raise StageError(f"{path}: not an importance matrix", hint="run the stage that makes it: dvc repro")
    mapped = {t.name: np.memmap(path, np.float32, "r", t.offset, t.shape[::-1]) for t in parts.values()}
    return {name: _mean(mapped[name + _SUMS], mapped[name + _COUNTS]) for name in names}


def _mean(sums: NDArray[np.float32], counts: NDArray[np.float32]) -> NDArray[np.float32]:
    # One row an expert; what was never reached counts as excited evenly.
    n = np.rint(counts).astype(np.float32).reshape(-1, 1)
    rows = sums.reshape(len(n), -1)
    return np.where(n > 0, rows / np.maximum(n, 1), np.float32(1)).astype(np.float32).reshape(-1)


def _reuse(kept: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(kept.with_suffix(".json").read_bytes())
        return found if files.sha256_file(kept) == found["sha256"] else None
    except (OSError, ValueError, KeyError):
        return None


def _make(kept: Path, source: Path, matrix: Path | None, recipe: Recipe, variant: Variant) -> dict[str, Any]:
    tensors = [t.name for t in llama.header(source).tensors]
    imatrix = load_imatrix(matrix) if matrix else {}
    refuse_unmatched(recipe, tensors, imatrix, _where(variant))
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".make.") as scratch:
        made = Path(scratch) / "model.gguf"
        with tqdm(desc=f"quantize {variant}", total=len(tensors), unit="tensor", file=sys.stderr, disable=None) as bar:
            fallbacks = llama.quantize(
                source, made, recipe, used(imatrix, recipe), process.processors(),
                metadata=origin(matrix, imatrix, variant.tier) if matrix else None,
                progress=lambda done, _: bar.update(done - bar.n),
            )  # fmt: skip
        llama.header(made)
        found = {"sha256": files.sha256_file(made), "fallbacks": [asdict(f) for f in fallbacks]}
        files.move(made, kept)
    files.write(kept.with_suffix(".json"), canonical(found) + b"\n")
    return found


def origin(matrix: Path, imatrix: Imatrix, tier: Tier) -> dict[str, str | int]:
    """Return what a released file says of its importance matrix, as llama-quantize does but for its paths."""
    return {
        "quantize.imatrix.file": f"imatrix/{tier}.gguf",
        "quantize.imatrix.dataset": "calibration.txt",
        "quantize.imatrix.entries_count": len(imatrix),
        "quantize.imatrix.chunks_count": int(llama.header(matrix).metadata["imatrix.chunk_count"]),  # type: ignore[arg-type]
    }


def _where(variant: Variant) -> str:
    tuned = f", tuned to {variant.family}" if variant.family else ""
    return f"models/{variant.tier}.yaml: recipes.{variant.target}{tuned}"


def _describe(recipe: Recipe, inputs: Inputs, fallbacks: list[dict[str, str]]) -> bytes:
    # Patterns as a list: their order counts, and an object's keys have none.
    shown = recipe.model_dump(mode="json")
    document = {
        "recipe": shown,
        "recipe_digest": f"sha256:{recipe.digest}",
        "imatrix_digest": f"sha256:{inputs.imatrix}" if recipe.imatrix else None,
        "fallbacks": fallbacks,
    }
    return canonical(document) + b"\n"


def _prune(store: Path, keys: set[str]) -> None:
    for path in store.glob("[0-9a-f]*.*"):
        if path.stem not in keys:
            path.unlink()
