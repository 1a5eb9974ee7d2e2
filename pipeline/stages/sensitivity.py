"""Stage `sensitivity`: what each matrix of a tier loses at each type it could have, and what presets lose as a whole.

Rules: one matrix at a time is rounded, by the very functions a release is quantized with, and only while its loss is
predicted (`curvature`); losses are told apart by prompt and answer, by family and by fold. Finished matrices are kept,
so a survey that was killed goes on. A tier whose recipes are all written out is not surveyed.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from tqdm import tqdm

from pipeline.catalog.names import Tier
from pipeline.catalog.recipe import Recipe, Search
from pipeline.errors import StageError
from pipeline.manifest.encoding import canonical, sha256
from pipeline.ports import files, ggml, process
from pipeline.stages import causal_lm
from pipeline.stages.project import Project
from pipeline.stages.quality import rounded
from pipeline.stages.quantize import BASES_NEEDING_IMATRIX, TYPES_NEEDING_IMATRIX, matrices
from pipeline.stages.survey import BLOCKS, EMBEDDING, HINT, Option, Preset, Survey, Surveyed
from pipeline.stages.trials import FOLDS, Journal, Trials
from pipeline.toolchain import kernels

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.stages.curvature import Curvature, Matrix

PRESETS = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S",
    "IQ3_S", "IQ3_XXS", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_XXS",
)  # fmt: skip
WIDE = "F16"  # what a matrix stays in where none of the types fits its rows
UNGUIDED = frozenset({"Q8_0", "F16", "BF16", "F32"})  # ggml rounds to them without an importance matrix

Key = tuple[str, bool]  # a type, and whether the importance matrix was used


def sensitivity(project: Project, tier: Tier) -> Survey:
    """Write and return a tier's survey.

    Raises:
        StageError: a matrix of the model is none of its GGUF file's.
        ToolError: the golden runner failed, or llama.cpp's library cannot be loaded.
    """
    kinds = _candidates(project, tier)
    found = _survey(project, tier, kinds) if kinds else Survey()
    files.write(project.sensitivity(tier), found.encode() + b"\n")
    return found


def _candidates(project: Project, tier: Tier) -> list[str]:
    """The types that any target's search may choose, sorted."""
    recipes = project.tier(tier).recipes or {}
    wanted = {
        kind
        for target, chosen in recipes.items()
        if isinstance(chosen, Search)
        for kind in chosen.search.types or kernels.fast(target)
    }
    return sorted(wanted)


def _survey(project: Project, tier: Tier, kinds: list[str]) -> Survey:
    trials = Trials(project, tier)
    families = sorted({example.family for example in trials.examples})
    cells = [
        [[n for n, e in enumerate(trials.examples) if (e.fold, e.family) == (fold, family)] for family in families]
        for fold in range(FOLDS)
    ]
    counts = [(example.prompt, example.answer) for example in trials.examples]
    recipes = [
        (name, imatrix, Recipe(base=name, imatrix=imatrix))
        for name in PRESETS
        for imatrix in (True, False)
        if imatrix or name not in BASES_NEEDING_IMATRIX
    ]
    measured = trials.measure([recipe for _, _, recipe in recipes], shown=f"{tier}: presets")
    return Survey(
        families=families,
        positions=[[[sum(counts[n][part] for n in cell) for part in (0, 1)] for cell in row] for row in cells],
        matrices=_Surveyor(project, tier, trials, cells, kinds).survey(),
        presets=[
            Preset(name=name, imatrix=imatrix, trial=trial)
            for (name, imatrix, _), trial in zip(recipes, measured, strict=True)
        ],
    )


class _Surveyor:
    """Rounds every matrix to every type and predicts what that loses."""

    def __init__(
        self, project: Project, tier: Tier, trials: Trials, cells: list[list[list[int]]], kinds: list[str]
    ) -> None:
        """Find what a former run has finished; `cells` are the examples' places by fold and family."""
        self._model, self._trials, self._kinds = project.model(tier), trials, kinds
        self._settings, self._tier = project.tier(tier).sensitivity, tier
        self._cells = cells
        self._shapes = {t.name: t.shape for t in matrices(trials.header)}
        settings = {"draws": self._settings.draws, "seed": self._settings.seed, "types": kinds}
        self._journal = Journal(trials.folder / f"survey-{sha256(canonical(settings))[:16]}.jsonl")

    def survey(self) -> list[Surveyed]:
        """Return all matrices, in their file's order; raises StageError where the model has one its file lacks."""
        import torch

        from pipeline.stages.curvature import Curvature
        from pipeline.stages.portable import Portable

        torch.set_num_threads(1)  # the order of additions decides the last bits, and these may decide a recipe
        settings = self._settings
        model = causal_lm.load(self._model, dtype="auto")
        curvature = Curvature(model, self._trials.requests.requests, draws=settings.draws, seed=settings.seed)
        names = self._gguf_names(curvature)
        done = {s.name: s for s in map(Surveyed.model_validate_json, self._journal.lines())}
        left = Counter(names.values())
        moved: dict[str, dict[Key, Tensor]] = defaultdict(dict)
        if set(names.values()) <= set(done):
            return [done[name] for name in self._shapes if name in done]
        with (
            Portable(),
            tqdm(
                total=len(curvature.names), desc=f"{self._tier}: matrices", unit="matrix", file=sys.stderr, disable=None
            ) as bar,
            ThreadPoolExecutor(process.processors()) as pool,
        ):
            for matrix in curvature.matrices():
                name = names[matrix.name]
                if name not in done:
                    options = self._options(name)
                    found = pool.map(partial(self._moved, matrix, name, curvature), options)
                    for option, one in zip(options, found, strict=True):
                        moved[name][option] = moved[name].get(option, 0) + one
                    left[name] -= 1
                    if not left[name]:  # a tied embedding counts both as input and as output
                        done[name] = self._surveyed(name, moved.pop(name))
                        self._journal.add(done[name])
                bar.update()
        return [done[name] for name in self._shapes if name in done]

    def _gguf_names(self, curvature: Curvature) -> dict[str, str]:
        """The GGUF name of each module's matrix."""
        import gguf

        architecture = str(self._trials.header.metadata["general.architecture"])
        number = next((a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), None)
        layers = int(self._trials.header.metadata[f"{architecture}.block_count"])  # type: ignore[arg-type]
        known = gguf.get_tensor_name_map(number, layers) if number is not None else None
        modules = curvature.names
        found = {module: f"{known and known.get_name(module)}.weight" for module in modules}
        if curvature.tied:
            found[modules[0]] = EMBEDDING
        for module, name in found.items():
            if name not in self._shapes:
                raise StageError(f"{self._tier}: {module} is no matrix of its GGUF file", hint=HINT)
        return found

    def _options(self, name: str) -> list[Key]:
        columns = self._shapes[name][0]
        fitting = [kind for kind in self._kinds if columns % BLOCKS[kind][0] == 0] or [WIDE]
        known = name in self._trials.imatrix
        return [
            (kind, imatrix)
            for kind in fitting
            for imatrix in (False, True)
            if (known if imatrix else kind not in TYPES_NEEDING_IMATRIX) and not (imatrix and kind in UNGUIDED)
        ]

    def _moved(self, matrix: Matrix, name: str, curvature: Curvature, option: Key) -> Tensor:
        import torch

        kind, imatrix = option
        weight = matrix.weight.numpy()
        change = ggml.rounded(weight, kind, self._trials.imatrix[name] if imatrix else None)
        change -= weight
        return matrix.moved(torch.from_numpy(change), curvature.rows, curvature.sequences)

    def _surveyed(self, name: str, moved: Mapping[Key, Tensor]) -> Surveyed:
        columns, rows = self._shapes[name][:2]
        draws = self._settings.draws
        options = []
        for (kind, imatrix), found in moved.items():
            kl = (found.double() ** 2 / 2).view(2, draws, -1).mean(1)  # of prompt and of answer, each example
            options.append(
                Option(
                    type=kind, imatrix=imatrix,
                    kl=[[[rounded(float(part[cell].sum())) for part in kl] for cell in row] for row in self._cells],
                )
            )  # fmt: skip
        return Surveyed(name=name, columns=columns, rows=rows, options=options)
