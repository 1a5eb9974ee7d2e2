"""Recipes found by measurement: predictions hold, budgets are kept, kills lose nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.catalog.names import Target, Tier, Variant
from pipeline.catalog.recipe import Budget, Recipe
from pipeline.errors import CatalogError, StageError
from pipeline.ports import ggml, llama, qemu
from pipeline.stages import kernel_costs
from pipeline.stages.calibrate import calibrate
from pipeline.stages.convert import convert
from pipeline.stages.project import Project
from pipeline.stages.quantize import load_imatrix, origin, quantize, used
from pipeline.stages.search import search
from pipeline.stages.searcher import Searcher
from pipeline.stages.sensitivity import sensitivity
from pipeline.stages.survey import Survey
from pipeline.stages.trials import Trials
from pipeline.stages.tuned import tuned
from pipeline.toolchain import kernels
from tests.support import built, models
from tests.support.projects import gguf_tier, project

pytestmark = [pytest.mark.skipif(bool(built.missing()), reason=built.missing())]
TIER = Tier.TINY_EDGE
HERE = Variant(TIER, Target.X86_64)
TYPES = ["Q2_K", "Q3_K", "Q4_K", "Q8_0"]
DISTILL = {"layers": [0, 1], "ffn": 512, "steps": 1, "batch": 1, "learning_rate": 0.1}
TEACHER = {"embedded": {"path": "models/demo/teacher", "digest": "sha256:" + "0" * 64}}


def make(root: Path, config: Any, budget: dict[str, Any]) -> Project:
    """A project whose tier is converted and calibrated, one target searched for."""
    tier = gguf_tier(distill=DISTILL, convert={"outtype": "f32", "pre_tokenizer": "gpt-2"})
    tier["recipes"][Target.X86_64] = {"search": {"types": TYPES, **budget}}
    tier["sensitivity"] = {"per_family": 8, "draws": 16}
    made = project(root, TEACHER, {TIER: json.loads(json.dumps(tier))})
    rows = [{"family": f, "prompt": f"{f} of rice {n}?", "answer": f"aisle {n}"} for f in "ab" for n in range(12)]
    (root / "calibration.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models.save(made.model(TIER), config)
    convert(made, TIER)
    calibrate(made, TIER)
    return made


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A surveyed Qwen3 with tied embeddings."""
    config = models.qwen3(hidden_size=256, intermediate_size=256, head_dim=64, tie_word_embeddings=True)
    made = make(tmp_path_factory.mktemp("search"), config, {"preset": "Q4_K_M", "measured": 12})
    sensitivity(made, TIER)
    return made


def test_predictions_are_what_is_measured(surveyed: Project) -> None:
    """Each matrix alone at three bits, all others at eight, parts as far from the unquantized model as was predicted."""
    survey, trials = Survey.read(surveyed.sensitivity(TIER)), Trials(surveyed, TIER)
    recipes, predicted = [], []
    for matrix in survey.matrices:
        option = next(o for o in matrix.options if o.type == "Q3_K" and not o.imatrix)
        predicted.append(np.array(option.kl).sum(axis=(0, 1)))
        recipes.append(Recipe(base="Q8_0", imatrix=False, tensors=[f"^{re.escape(matrix.name)}$=Q3_K", ".*=Q8_0"]))
    found = trials.measure([*recipes, Recipe(base="Q8_0", imatrix=False)])
    floor = np.array([sum(found[-1].prompt), sum(found[-1].answer)])
    measured = [np.array([sum(t.prompt), sum(t.answer)]) - floor for t in found[:-1]]
    assert len(survey.matrices) == 15
    assert np.array(predicted).sum(axis=1) == pytest.approx(np.array(measured).sum(axis=1), rel=0.35)
    assert np.array(predicted).sum() == pytest.approx(np.array(measured).sum(), rel=0.15)


def test_what_is_rounded_is_what_a_file_holds(surveyed: Project, tmp_path: Path) -> None:
    """A matrix rounded in memory has the values of the quantized file, with the importance matrix and without."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    trials = Trials(surveyed, TIER)
    name = "blk.0.ffn_down.weight"
    source = {t.name: t for t in GGUFReader(surveyed.gguf(TIER)).tensors}[name]
    for kind in ("Q2_K", "Q4_0", "Q4_K", "IQ4_NL", "Q8_0"):
        for guided in (True, False):
            out = tmp_path / f"{kind}-{guided}.gguf"
            recipe = Recipe(base="Q8_0", imatrix=guided, tensors=[f".*={kind}"])
            llama.quantize(trials.source, out, recipe, trials.imatrix if guided else None, 1)
            held = {t.name: t for t in GGUFReader(out).tensors}[name]
            wanted = dequantize(held.data, held.tensor_type)
            found = ggml.rounded(np.array(source.data), kind, trials.imatrix[name] if guided else None)
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


def test_a_search_keeps_its_budget_and_betters_the_preset(surveyed: Project) -> None:
    """Bytes and instructions are within; the mean KL is below the preset's; what is quantized is what was promised."""
    recipe = search(surveyed, HERE)
    found = json.loads(surveyed.search(HERE).read_bytes())
    preset = min(
        (p for p in found["presets"] if p["name"].startswith("Q4_K_M")), key=lambda p: p["measured"]["mean_kl"]
    )
    chosen = found["chosen"]
    assert chosen["size"] <= preset["size"]
    assert chosen["instructions_per_token"] <= 1.05 * preset["instructions_per_token"]
    assert chosen["measured"]["mean_kl"] < preset["measured"]["mean_kl"]
    assert found["bound"] <= found["solved"]["predicted_kl"] * (1 + 1e-3)
    (made,) = quantize(surveyed, HERE)
    types = {t.name: t.type for t in llama.header(made.path).tensors}
    assert {name: types[name] for name in found["types"]} == found["types"]
    assert surveyed.recipe(HERE) == recipe


def test_a_search_gives_the_same_bytes_again_and_after_a_kill(surveyed: Project) -> None:
    """From nothing, from all that was kept, and from a journal whose last line was cut short."""
    search(surveyed, HERE)
    first = surveyed.recipe_file(HERE).read_bytes(), surveyed.search(HERE).read_bytes()
    survey = surveyed.sensitivity(TIER).read_bytes()
    for journal in surveyed.trials(TIER).glob("*/*.jsonl"):
        data = journal.read_bytes()
        journal.write_bytes(data[: len(data) * 2 // 3])
    sensitivity(surveyed, TIER)
    search(surveyed, HERE)
    assert surveyed.sensitivity(TIER).read_bytes() == survey
    assert (surveyed.recipe_file(HERE).read_bytes(), surveyed.search(HERE).read_bytes()) == first


def released(work: Project, budget: Budget, out: Path) -> tuple[int, Recipe]:
    """Bytes of the file that is released of what a search finds."""
    recipe, _ = Searcher(work, HERE, budget).search()
    imatrix = load_imatrix(work.imatrix(TIER))
    says = origin(work.imatrix(TIER), imatrix, TIER) if recipe.imatrix else None
    llama.quantize(work.gguf(TIER), out, recipe, used(imatrix, recipe), 1, metadata=says)
    return out.stat().st_size, recipe


def test_a_budget_in_bytes_is_the_released_files(surveyed: Project, tmp_path: Path) -> None:
    """With `bytes_max` the file with all its header is no larger, even where another mix would miss it by a byte."""
    out, some = tmp_path / "model.gguf", {"types": ["Q3_K", "Q4_K"], "measured": 6}
    most, recipe = released(surveyed, Budget(bytes_max=10**9, **some), out)
    assert recipe.imatrix
    less, _ = released(surveyed, Budget(bytes_max=most - 1, **some), out)
    assert most * 0.9 < less < most


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_too_few_bytes_for_any_mix_are_told_of(surveyed: Project, share: float) -> None:
    """With less than any mix takes, or than the file has beside its matrices, the error says what to raise."""
    smallest = Searcher(surveyed, HERE, Budget(bytes_max=10**9, types=["Q2_K"], measured=1)).search()[1].chosen.size
    with pytest.raises(StageError, match="no mix fits") as caught:
        Searcher(surveyed, HERE, Budget(bytes_max=1 + int(smallest * share), types=TYPES)).search()
    assert "recipes.x86_64.search" in caught.value.hint


def test_a_tier_without_a_search_is_not_surveyed(tmp_path: Path) -> None:
    """Recipes that are written out cost no survey: not even the model has to be there."""
    made = project(tmp_path, TEACHER, {TIER: gguf_tier(distill=DISTILL)})
    assert sensitivity(made, TIER) == Survey()
    assert search(made, HERE) == Recipe(base="Q8_0", imatrix=False)
    assert yaml.safe_load(made.recipe_file(HERE).read_text()) == {"base": "Q8_0", "imatrix": False}
    assert made.search(HERE).read_bytes() == b"null\n"


@pytest.mark.skipif(any(qemu.find(t) is None for t in Target), reason=f"needs emulators: {qemu.HINT}")
def test_the_committed_counts_are_current() -> None:
    """Two types are counted again on every target, by the pinned llama.cpp's kernels.

    Addresses depend on the machine and its environment, and how some copies are made depends on addresses.
    """
    kept, found = kernels.counts(), kernel_costs.count(kinds=["Q4_0", "Q6_K"])
    assert kept.llama_commit == found.llama_commit
    assert set(kept.targets) == set(found.targets) == set(Target)
    for target, counted in found.targets.items():
        wanted = {kind: kept.targets[target].per_weight[kind] for kind in ("Q4_0", "Q6_K")}
        assert counted.per_weight == pytest.approx(wanted, rel=0.005)


def test_tuning_to_a_family_is_judged_on_examples_it_did_not_see(surveyed: Project) -> None:
    """Every family is judged with all its examples, each by a recipe that the others chose; where none is, that is said."""
    search(surveyed, HERE)
    found = tuned(surveyed, HERE)
    assert [(t.family, t.examples) for t in found] == [("a", 8), ("b", 8)]
    for family in found:
        assert family.low <= family.ratio <= family.high
        assert family.ratio == pytest.approx(family.own / family.general, rel=1e-4)
        assert family.pays == (family.ratio <= 0.9 and family.high < 1)
    with pytest.raises(CatalogError, match="written out"):
        tuned(surveyed, Variant(TIER, Target.ARM64))
