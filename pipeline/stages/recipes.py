"""Recipes by hand: read one from a variant, a YAML file or a GGUF file, compare two files, make a file by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.catalog.names import Tier, Variant
from pipeline.catalog.recipe import PRESETS, Recipe
from pipeline.errors import CatalogError, StageError
from pipeline.ports import files, llama, process
from pipeline.stages.mix import patterns
from pipeline.stages.project import MODEL, Project, read_recipe
from pipeline.stages.quantize import load_imatrix, matrices, refuse_unmatched, refuse_unusable, used


@dataclass(frozen=True)
class Change:
    """A tensor whose types two files differ in; None where one lacks it; sizes in bytes."""

    tensor: str
    before: str | None
    after: str | None
    size_before: int
    size_after: int


def recipe(project: Project, what: str) -> Recipe:
    """Return the recipe of a variant, of a YAML file, or of a GGUF file: the types its tensors have.

    Raises:
        CatalogError: it is none of them.
        StageError: the GGUF file is not whole.
    """
    path = Path(what)
    if path.suffix == ".gguf":
        return _of_file(path)
    if path.suffix in {".yaml", ".yml"}:
        return read_recipe(path)
    return project.recipe(_variant(what))


def changes(project: Project, before: str, after: str) -> Iterator[Change]:
    """Yield where two files differ, each a variant that was built or a GGUF file; raises as `recipe`."""
    one, other = (
        {t.name: t for t in matrices(llama.header(path))} for path in (_file(project, before), _file(project, after))
    )
    for name in sorted(one.keys() | other.keys()):
        a, b = one.get(name), other.get(name)
        if (a and a.type) != (b and b.type):
            yield Change(name, a.type if a else None, b.type if b else None, a.size if a else 0, b.size if b else 0)


def apply(project: Project, recipe: Recipe, tier: Tier, out: Path) -> int:
    """Quantize a tier by a recipe into a file of one's own, and return its bytes.

    Raises:
        CatalogError: the recipe asks for what llama.cpp would ignore or abort on.
        StageError: the tier has not been converted, or the file cannot be written.
        ToolError: llama.cpp refuses.
    """
    refuse_unusable(recipe, "the recipe")
    source = project.gguf(tier)
    tensors = [t.name for t in llama.header(source).tensors]
    imatrix = load_imatrix(project.imatrix(tier)) if recipe.imatrix else {}
    refuse_unmatched(recipe, tensors, imatrix, "the recipe")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
            made = Path(scratch) / MODEL
            llama.quantize(source, made, recipe, used(imatrix, recipe), process.processors())
            files.move(made, out)
    except OSError as e:
        raise StageError(f"cannot write {out}: {e.strerror}", hint="free space or choose another file") from e
    return out.stat().st_size


def _of_file(path: Path) -> Recipe:
    header = llama.header(path)
    types = {t.name: t.type for t in matrices(header)}
    number = header.metadata.get("general.file_type")
    base = next((name for name, value in PRESETS.items() if value == number), None)
    if base is None:
        raise StageError(f"{path}: general.file_type {number} is no preset of llama.cpp", hint="choose another file")
    guided = "quantize.imatrix.entries_count" in header.metadata
    return Recipe(base=base, imatrix=guided, tensors=patterns(types))


def _file(project: Project, what: str) -> Path:
    return Path(what) if what.endswith(".gguf") else project.variant(_variant(what)) / MODEL


def _variant(name: str) -> Variant:
    try:
        return Variant.parse(name)
    except ValueError as e:
        raise CatalogError(f"{name}: {e}", hint="name a variant, a .yaml recipe or a .gguf file") from e
