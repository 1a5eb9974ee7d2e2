"""Where a project keeps what: the catalog it reads and the folders its stages write.

Rules: every path of dvc.yaml is named here once; nothing here creates or changes a file. What a stage writes of a
variant lies in a folder named by tier and target, beside what it writes of those tuned to prompt families: how many
there are is known only when their recipes were searched for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from pipeline.catalog.document import parse_yaml
from pipeline.catalog.golden import Example, GoldenPrompt, parse_examples, parse_golden
from pipeline.catalog.names import VARIANTS, RunnerClass, Target, Tier, Variant
from pipeline.catalog.params import Params
from pipeline.catalog.recipe import Recipe, Search
from pipeline.catalog.tiers import TierFile
from pipeline.errors import CatalogError
from pipeline.ports import files

MODEL = "model.gguf"
MANIFEST_FILE = "manifest.json"
PROVENANCE_FILE = "provenance.json"
HINT = "run this in the project's folder, or mend the path in params.yaml"


def _params(text: str, file: str) -> Params:
    return parse_yaml(text, Params, file)


def _tier_file(text: str, file: str, *, tier: Tier) -> TierFile:
    found = parse_yaml(text, TierFile, file)
    if found.tier is not tier:
        raise CatalogError(f"{file}: tier is {found.tier}, allowed here: {tier}", hint=f"write 'tier: {tier}'")
    return found


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in a YAML file; raises CatalogError where it is none."""
    return files.load(path, lambda text, file: parse_yaml(text, Recipe, file))


def _kin(folder: Path, variant: Variant) -> tuple[Variant, ...]:
    """A variant, and those tuned to a family of which something lies in a folder."""
    tuned = sorted(path.name.removesuffix(".yaml") for path in folder.glob(f"{variant.name}+*"))
    return (variant, *map(Variant.parse, tuned))


@dataclass(frozen=True)
class Project:
    """A project folder and its parsed `params.yaml`."""

    root: Path
    params: Params

    @classmethod
    def load(cls, root: Path = Path()) -> Project:
        """Return the project in `root`; raises CatalogError where its params.yaml is not as it must be."""
        return cls(root, files.load(root / "params.yaml", _params, hint=HINT))

    def tier(self, tier: Tier) -> TierFile:
        """Return `models/<tier>.yaml`; raises CatalogError."""
        return files.load(self.root / "models" / f"{tier}.yaml", partial(_tier_file, tier=tier), hint=HINT)

    def golden(self) -> tuple[GoldenPrompt, ...]:
        return files.load(self.golden_file, parse_golden, hint=HINT)

    def calibration(self) -> tuple[Example, ...]:
        return files.load(self.root / self.params.data.calibration, parse_examples, hint=HINT)

    def distillation(self) -> tuple[Example, ...]:
        return files.load(self.root / self.params.data.distillation, parse_examples, hint=HINT)

    @property
    def golden_file(self) -> Path:
        return self.root / self.params.data.golden

    @property
    def build(self) -> Path:
        return self.root / "build"

    @property
    def teacher(self) -> Path:
        """Hugging Face folder of the teacher: safetensors, config, tokenizer."""
        return self.build / "teacher"

    @property
    def teacher_record(self) -> Path:
        """Where the teacher came from, and the digest of its tree."""
        return self.build / "teacher.json"

    def model(self, tier: Tier) -> Path:
        """Hugging Face folder of a tier's unquantized model."""
        return self.build / "models" / tier

    def distillation_report(self, tier: Tier) -> Path:
        """How a tier's unquantized model was made, or where it was fetched from."""
        return self.build / "distill" / f"{tier}.json"

    def checkpoints(self, tier: Tier) -> Path:
        """Folder of a distillation under way; outside the DVC graph, gone when it is done."""
        return self.build / "checkpoints" / tier

    def gguf(self, tier: Tier) -> Path:
        """The unquantized GGUF of a tier."""
        return self.build / "gguf" / f"{tier}.gguf"

    def imatrix(self, tier: Tier) -> Path:
        return self.build / "imatrix" / f"{tier}.gguf"

    def trials(self, tier: Tier) -> Path:
        """Folder of recipes tried and matrices surveyed so far; outside the DVC graph, a cache."""
        return self.build / "trials" / tier

    def sensitivity(self, tier: Tier) -> Path:
        """What each matrix of a tier loses at each type."""
        return self.build / "sensitivity" / f"{tier}.json"

    def recipe_file(self, variant: Variant) -> Path:
        """The recipe a variant is quantized by, written out or found."""
        return self.build / "recipes" / variant.plain_name / f"{variant.name}.yaml"

    def chosen(self, variant: Variant) -> Recipe | Search:
        """Return what a GGUF variant's tier file says: a recipe, or the budget to find one within.

        Raises:
            CatalogError: a variant is to be tuned to a family of which there is no calibration example.
        """
        recipes = self.tier(variant.tier).recipes
        assert recipes is not None, "a GGUF tier's file has 'recipes'"
        chosen = recipes[variant.target]
        if isinstance(chosen, Search) and chosen.search.families:
            self._refuse_unknown(chosen.search.families, f"models/{variant.tier}.yaml: recipes.{variant.target}")
        return chosen

    def _refuse_unknown(self, families: Sequence[str], where: str) -> None:
        known = sorted({example.family for example in self.calibration()} - {""})
        if unknown := [family for family in families if family not in known]:
            raise CatalogError(
                f"{where}.search.families: no calibration example is of family {unknown[0]!r}",
                hint=f"{self.params.data.calibration} has {', '.join(known) or 'no families'}",
            )

    def recipe(self, variant: Variant) -> Recipe:
        """Return the recipe a variant is quantized by; raises CatalogError where there is none yet."""
        return read_recipe(self.recipe_file(variant))

    def search(self, variant: Variant) -> Path:
        """How a variant's recipe was found."""
        return self.build / "search" / variant.plain_name / f"{variant.name}.json"

    def reference(self, tier: Tier) -> Path:
        """Folder of the golden prompts in a tier's tokens, and the unquantized tier's logits over them."""
        return self.build / "reference" / tier

    def runtime(self, target: Target) -> Path:
        """Folder of a target's programs, as they are released."""
        return self.build / "runtimes" / target

    @property
    def emulators(self) -> Path:
        """Which emulators this machine has."""
        return self.build / "emulators.json"

    def variant(self, variant: Variant) -> Path:
        """Folder of a variant's files, as they are released."""
        return self.build / "variants" / variant.plain_name / variant.name

    def variants(self) -> tuple[Variant, ...]:
        """Return what is released: the nine, each with those tuned to families that were built."""
        return tuple(chain.from_iterable(map(self.built, VARIANTS)))

    def built(self, variant: Variant) -> tuple[Variant, ...]:
        """Return a variant and, where it is for all prompts, those of its kin that were built."""
        return _kin(self.variant(variant).parent, variant)

    def found(self, variant: Variant) -> tuple[Variant, ...]:
        """Return a variant and, where it is for all prompts, those of its kin for which there are recipes."""
        return _kin(self.recipe_file(variant).parent, variant)

    def certificates(self, tier: Tier) -> Path:
        """How a tier's files decode on all targets."""
        return self.build / "certificates" / f"{tier}.json"

    def evidence(self, variant: Variant, runner: RunnerClass) -> Path:
        return self.build / "evidence" / runner / variant.plain_name / f"{variant.name}.json"

    def measurement(self, variant: Variant, runner: RunnerClass) -> Path:
        """A check's wall-clock figures."""
        return self.build / "measurements" / runner / variant.plain_name / f"{variant.name}.json"

    def attestation(self, variant: Variant, runner: RunnerClass) -> Path:
        """The signed statement of a check, made where the check was; outside the DVC graph."""
        return self.build / "attestations" / runner / variant.plain_name / f"{variant.name}.json"

    def benchmark(self, variant: Variant, runner: RunnerClass) -> Path:
        """pytest-benchmark's JSON of a check."""
        return self.build / "benchmarks" / runner / variant.plain_name / f"{variant.name}.json"

    @property
    def previous(self) -> Path:
        """What the gate compares with: a summary of the previous release."""
        return self.build / "previous.json"

    @property
    def gate(self) -> Path:
        return self.build / "gate.json"

    @property
    def release(self) -> Path:
        """Folder of the unsigned statements: manifest and provenance."""
        return self.build / "release"

    @property
    def signed(self) -> Path:
        """Folder of the signature bundles; outside the DVC graph."""
        return self.build / "signed"
