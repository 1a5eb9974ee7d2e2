"""From a Hugging Face folder to quantized variants: repeatable, the bytes of llama.cpp's own tools, made once."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.catalog.names import Target, Tier, Variant
from pipeline.catalog.recipe import Recipe
from pipeline.errors import CatalogError, StageError, ToolError
from pipeline.manifest import gguf
from pipeline.ports.files import sha256_file
from pipeline.stages.project import Project
from tests.support.projects import gguf_tier, project

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make setup builds and installs it")

from pipeline.ports import llama
from pipeline.stages import convert_entry
from pipeline.stages.calibrate import calibrate
from pipeline.stages.convert import convert
from pipeline.stages.quantize import Quantized, load_imatrix, quantize
from pipeline.stages.search import search
from pipeline.toolchain import host, runtime, source, wheel
from tests.support import models

TIER = Tier.TINY_EDGE
TEACHER = {"embedded": {"path": "models/demo/teacher", "digest": "sha256:" + "0" * 64}}
DISTILL = {"layers": [0, 1], "ffn": 512, "steps": 1, "batch": 1, "learning_rate": 0.1}
CONVERT = {"outtype": "bf16", "pre_tokenizer": "gpt-2"}
MIXED = ["token_embd=Q8_0", "^output=Q6_K", r"blk\.0\.attn_[qk]=Q5_0", "attn=Q3_K", "ffn_down=F16"]


@pytest.fixture(scope="module")
def toolchain() -> host.HostToolchain:
    try:
        runtime.find(runtime.native())
        return host.find()
    except ToolError as e:
        pytest.skip(f"{e.message}: {e.hint}")


@pytest.fixture(scope="module")
def llama_quantize(toolchain: host.HostToolchain) -> Path:
    return runtime.find(runtime.native()).program(runtime.QUANTIZE)


def write_tier(root: Path, **changes: Any) -> Project:
    """A project with calibration examples enough for two contexts, without a model."""
    made = project(root, TEACHER, {TIER: {**gguf_tier(distill=DISTILL, convert=CONVERT), **changes}})
    rows = [{"family": f, "prompt": f"{f} of rice {n}?", "answer": f"aisle {n}"} for f in "ab" for n in range(12)]
    (root / "calibration.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def write_recipes(made: Project, **recipes: dict[str, Any]) -> None:
    """Replace recipes of the project's tier, as stage `search` hands them on."""
    path = made.root / "models" / f"{TIER}.yaml"
    content = yaml.safe_load(path.read_text())
    # The order of a recipe's patterns counts.
    path.write_text(yaml.safe_dump(content | {"recipes": content["recipes"] | recipes}, sort_keys=False))
    for target in recipes:
        search(made, Variant(TIER, Target(target)))


def save_model(made: Project, **shape: int) -> None:
    config = models.llama(**{"hidden_size": 256, "intermediate_size": 512, **shape})
    models.save(made.model(TIER), config)


@pytest.fixture(scope="module")
def tier(toolchain: host.HostToolchain, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose tier is converted and calibrated."""
    made = write_tier(tmp_path_factory.mktemp("stages"))
    save_model(made)
    convert(made, TIER)
    calibrate(made, TIER)
    return made


@dataclass(frozen=True)
class Contents:
    """A GGUF file taken apart: the tensors' types and bytes, and the metadata."""

    tensors: dict[str, tuple[str, bytes]]
    metadata: dict[str, gguf.Value]

    @classmethod
    def of(cls, path: Path) -> Contents:
        found, data = llama.header(path), path.read_bytes()
        tensors = {t.name: (t.type, data[t.offset : t.offset + t.size]) for t in found.tensors}
        return cls(tensors, dict(found.metadata))


def make(made: Project, recipe: Recipe, target: Target = Target.X86_64) -> Quantized:
    write_recipes(made, **{target: recipe.model_dump(mode="json")})
    (found,) = quantize(made, Variant(TIER, target))
    return found


def test_conversion_repeats_in_any_folder(tier: Project, tmp_path: Path) -> None:
    """The same model gives the same bytes, in another folder and with another model card beside it."""
    other = write_tier(tmp_path / "elsewhere-7B-Instruct")
    save_model(other)
    (other.model(TIER) / "README.md").write_text("---\nlicense: mit\nname: other\ntags: [x]\n---\n")
    convert(other, TIER)
    assert sha256_file(other.gguf(TIER)) == sha256_file(tier.gguf(TIER))
    assert [p.name for p in other.gguf(TIER).parent.iterdir()] == [f"{TIER}.gguf"]


def test_metadata_says_where_the_model_is_from(tier: Project) -> None:
    """A converted file names itself, its origin, its licence and who made it."""
    found = llama.header(tier.gguf(TIER)).metadata
    wanted = {
        "general.name": "demo-teacher-tiny-edge",
        "general.basename": "demo-teacher",
        "general.finetune": "tiny-edge",
        "general.license": "apache-2.0",
        "general.quantized_by": "edge-release",
        "general.base_model.count": 1,
        "general.base_model.0.name": "demo-teacher",
        "general.base_model.0.version": TEACHER["embedded"]["digest"],
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.chat_template": models.TEMPLATE,
    }
    assert {key: found.get(key) for key in wanted} == wanted
    assert found["general.size_label"]


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16"])
def test_matrices_have_the_tiers_type(toolchain: host.HostToolchain, tmp_path: Path, outtype: str) -> None:
    """The type in `convert.outtype` is that of every matrix; norms stay f32."""
    made = write_tier(tmp_path, convert={**CONVERT, "outtype": outtype})
    save_model(made, hidden_size=64, intermediate_size=96)
    convert(made, TIER)
    types = {t.name: t.type for t in llama.header(made.gguf(TIER)).tensors}
    assert {kind for name, kind in types.items() if "norm" not in name} == {outtype.upper()}
    assert {kind for name, kind in types.items() if "norm" in name} == {"F32"}


def test_a_hub_model_keeps_its_name(toolchain: host.HostToolchain, tmp_path: Path) -> None:
    """A tier with a repository of its own names it, with organization, revision and address."""
    made = write_tier(tmp_path, distill=None, hub={"repo": "acme/Bolt-2B", "revision": "5" * 40}, license="mit")
    save_model(made, hidden_size=64, intermediate_size=96)
    convert(made, TIER)
    found = llama.header(made.gguf(TIER)).metadata
    wanted = {
        "general.name": "Bolt-2B",
        "general.organization": "acme",
        "general.license": "mit",
        "general.source.url": "https://huggingface.co/acme/Bolt-2B",
        "general.base_model.0.organization": "acme",
        "general.base_model.0.repo_url": "https://huggingface.co/acme/Bolt-2B",
        "general.base_model.0.version": "5" * 40,
    }
    assert {key: found.get(key) for key in wanted} == wanted
    assert "general.finetune" not in found


def test_an_unknown_tokenizer_is_named_as_such(toolchain: host.HostToolchain, tmp_path: Path) -> None:
    """Without `convert.pre_tokenizer` an unknown tokenizer is refused, the hint says where to name one, nothing stays."""
    made = write_tier(tmp_path, convert={"outtype": "f32"})
    save_model(made, hidden_size=64, intermediate_size=96)
    with pytest.raises(StageError, match="how this tokenizer splits") as e:
        convert(made, TIER)
    assert "convert.pre_tokenizer" in e.value.hint
    assert list(made.gguf(TIER).parent.iterdir()) == []


@pytest.mark.parametrize(
    ("known", "taken"), [("'qwen2'", "qwen2"), ("1 / 0", "ZeroDivisionError"), ("unknown()", "gpt-2")]
)
def test_the_given_pre_tokenizer_counts_only_where_the_converter_gives_up(
    tmp_path: Path, known: str, taken: str
) -> None:
    """What the converter knows wins, other failures stay failures, and only NotImplementedError is answered."""
    (tmp_path / "conversion").mkdir()
    (tmp_path / "conversion" / "__init__.py").touch()
    (tmp_path / "conversion" / "base.py").write_text(
        "def unknown():\n    raise NotImplementedError\n\n"
        f"class TextModel:\n    def get_vocab_base_pre(self, tokenizer):\n        return {known}\n"
    )
    (tmp_path / "convert_hf_to_gguf.py").write_text(
        "from conversion.base import TextModel\nprint(TextModel().get_vocab_base_pre(None))\n"
    )
    command = [sys.executable, "-P", convert_entry.__file__, str(tmp_path), "gpt-2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert taken in done.stdout + done.stderr


def test_calibration_repeats(tier: Project, tmp_path: Path) -> None:
    """The importance matrix of the same model and examples has the same bytes in another folder."""
    other = write_tier(tmp_path)
    other.gguf(TIER).parent.mkdir(parents=True)
    other.gguf(TIER).write_bytes(tier.gguf(TIER).read_bytes())
    calibrate(other, TIER)
    assert sha256_file(other.imatrix(TIER)) == sha256_file(tier.imatrix(TIER))


def test_calibration_covers_every_matrix_but_the_ends(tier: Project) -> None:
    """There are mean squares, all finite and none negative, for each matrix of each layer."""
    matrix = load_imatrix(tier.imatrix(TIER))
    wanted = {
        t.name for t in llama.header(tier.gguf(TIER)).tensors if t.name.startswith("blk") and "norm" not in t.name
    }
    assert set(matrix) == wanted
    assert all(np.isfinite(v).all() and (v >= 0).all() and v.dtype == np.float32 for v in matrix.values())


def test_too_short_a_text_is_refused(tier: Project, tmp_path: Path) -> None:
    """Examples too short for the context are an error that says how many tokens there are and are needed."""
    made = write_tier(tmp_path, calibrate={"context": 512, "chunks": 1})
    made.gguf(TIER).parent.mkdir(parents=True)
    made.gguf(TIER).write_bytes(tier.gguf(TIER).read_bytes())
    with pytest.raises(StageError, match=r"have \d+ tokens, 1024 are needed"):
        calibrate(made, TIER)
    assert not made.imatrix(TIER).exists()


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(Recipe(base="Q4_K_M"), id="q4_k_m-imatrix"),
        pytest.param(Recipe(base="Q4_K_M", imatrix=False), id="q4_k_m"),
        pytest.param(Recipe(base="Q4_0", imatrix=False), id="q4_0"),
        pytest.param(Recipe(base="Q4_0"), id="q4_0-imatrix"),
        pytest.param(Recipe(base="Q2_K", imatrix=False), id="q2_k"),
        pytest.param(Recipe(base="Q3_K_L"), id="q3_k_l-imatrix"),
        pytest.param(Recipe(base="Q8_0"), id="q8_0-imatrix"),
        pytest.param(Recipe(base="IQ4_NL"), id="iq4_nl-imatrix"),
        pytest.param(Recipe(base="IQ4_XS"), id="iq4_xs-imatrix"),
        pytest.param(Recipe(base="IQ2_XXS"), id="iq2_xxs-imatrix"),
        pytest.param(Recipe(base="F16"), id="f16"),
        pytest.param(Recipe(base="Q4_K_M", tensors=MIXED), id="overrides-imatrix"),
        pytest.param(Recipe(base="Q5_K_M", imatrix=False, tensors=MIXED), id="overrides"),
        pytest.param(Recipe(base="Q6_K", tensors=["blk=IQ2_XXS"]), id="overrides-needing-imatrix"),
    ],
)
def test_bytes_are_those_of_llama_quantize(tier: Project, llama_quantize: Path, tmp_path: Path, recipe: Recipe) -> None:
    """Every tensor has the type and the bytes that llama-quantize gives it, and the metadata differ in names alone."""
    ours = Contents.of(make(tier, recipe).path)
    command: list[str | Path] = [llama_quantize]
    command += ["--imatrix", tier.imatrix(TIER)] * recipe.imatrix
    for pattern, kind in recipe.overrides.items():
        command += ["--tensor-type", f"{pattern}={kind.lower()}"]
    subprocess.run([*command, tier.gguf(TIER), tmp_path / "theirs.gguf", recipe.base], check=True, capture_output=True)
    theirs = Contents.of(tmp_path / "theirs.gguf")
    assert ours.tensors == theirs.tensors
    assert ours.metadata.keys() == theirs.metadata.keys()
    differing = {key for key in ours.metadata if ours.metadata[key] != theirs.metadata[key]}
    assert differing <= {"quantize.imatrix.file"}
    assert ours.metadata["general.quantized_by"] == "edge-release"


def test_overrides_reach_both_ends(tier: Project) -> None:
    """A recipe's patterns give the embedding and the output their types too; norms stay as they are."""
    types = {t.name: t.type for t in llama.header(make(tier, Recipe(base="Q4_K_M", tensors=MIXED)).path).tensors}
    assert types["token_embd.weight"] == "Q8_0"
    assert types["output.weight"] == "Q6_K"
    assert types["blk.0.attn_q.weight"] == "Q5_0"
    assert types["blk.1.attn_q.weight"] == "Q3_K"
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_equal_recipes_are_quantized_once(tier: Project) -> None:
    """The second and third target with one recipe share the first one's file, and say so."""
    recipe = Recipe(base="Q5_K_S")
    for target in Target:
        write_recipes(tier, **{target: recipe.model_dump(mode="json")})
    made = [found for target in Target for found in quantize(tier, Variant(TIER, target))]
    assert [m.reused for m in made] == [False, True, True]
    assert len({m.path.stat().st_ino for m in made}) == 1
    assert {m.sha256 for m in made} == {sha256_file(made[0].path)}


def test_a_spoilt_file_is_made_again(tier: Project) -> None:
    """What is reused is checked first: a file changed meanwhile is replaced by the right one."""
    first = make(tier, Recipe(base="Q5_0"))
    with first.path.open("r+b") as f:
        f.seek(-4, os.SEEK_END)
        f.write(b"ouch")
    again = make(tier, Recipe(base="Q5_0"))
    assert not again.reused
    assert sha256_file(again.path) == first.sha256


def test_files_of_past_recipes_go(tier: Project) -> None:
    """The shared folder holds the files of the present recipes and no others."""
    for base in ("Q4_1", "Q5_1"):
        for target in Target:
            write_recipes(tier, **{target: {"base": base}})
        quantize(tier, Variant(TIER, Target.ARM64))
    kept = [p for p in (tier.build / "quantized" / TIER).iterdir() if p.suffix == ".gguf"]
    assert len(kept) == 1
    assert kept[0].samefile(tier.variant(Variant(TIER, Target.ARM64)) / "model.gguf")


def test_the_recipe_lies_beside_the_model(tier: Project) -> None:
    """A variant's folder holds the model and, as canonical JSON, the recipe that made it with its digests."""
    recipe = Recipe(base="Q4_K_M", tensors=MIXED)
    folder = make(tier, recipe).path.parent
    assert sorted(p.name for p in folder.iterdir()) == ["model.gguf", "recipe.json"]
    document = json.loads((folder / "recipe.json").read_bytes())
    assert document["recipe"] == {"base": "Q4_K_M", "imatrix": True, "tensors": MIXED, "no_imatrix": []}
    assert document["recipe_digest"] == f"sha256:{recipe.digest}"
    assert document["imatrix_digest"] == f"sha256:{sha256_file(tier.imatrix(TIER))}"


def test_types_that_give_way_are_reported(
    toolchain: host.HostToolchain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where rows do not fit a type's blocks, the type taken instead is logged and stands in recipe.json."""
    made = write_tier(tmp_path)
    save_model(made, intermediate_size=288)
    convert(made, TIER)
    calibrate(made, TIER)
    with caplog.at_level(logging.WARNING):
        found = make(made, Recipe(base="Q4_K_M"))
    types = {t.name: t.type for t in llama.header(found.path).tensors}
    assert {f.tensor for f in found.fallbacks} == {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"}
    assert all(types[f.tensor] == f.taken for f in found.fallbacks)
    assert "blk.0.ffn_down.weight" in caplog.text
    listed = json.loads((found.path.parent / "recipe.json").read_bytes())["fallbacks"]
    assert {f["tensor"] for f in listed} == {f.tensor for f in found.fallbacks}
    assert make(made, Recipe(base="Q4_K_M"), Target.ARM64).fallbacks == found.fallbacks


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(Recipe(base="IQ2_XS", imatrix=False), id="needs-imatrix"),
        pytest.param(Recipe(base="Q4_K_M", tensors=["token_embd=IQ2_XXS"]), id="would-abort"),
        pytest.param(Recipe(base="Q4_K_M", tensors=["blk.99=Q8_0"]), id="matches-nothing"),
    ],
)
def test_recipes_that_cannot_work_leave_nothing(tier: Project, recipe: Recipe) -> None:
    """A refused recipe is a catalog error, and no half-made file stays."""
    with pytest.raises(CatalogError):
        make(tier, recipe, Target.RISCV64)
    assert not list((tier.build / "quantized" / TIER).glob(".make.*"))


def test_a_regular_expression_of_python_alone_is_an_error(tier: Project) -> None:
    """A pattern that Python knows and llama.cpp does not is llama.cpp's own error, with its words."""
    with pytest.raises(ToolError, match="cannot quantize"):
        make(tier, Recipe(base="Q4_K_M", tensors=[r"(?P<x>attn_q)=Q8_0"]))


def test_a_foreign_importance_matrix_is_refused(tier: Project, tmp_path: Path) -> None:
    """A GGUF file that is no importance matrix is not taken for one."""
    with pytest.raises(StageError, match="not an importance matrix"):
        load_imatrix(tier.gguf(TIER))


def test_an_empty_cache_says_what_to_do(tmp_path: Path) -> None:
    """Where llama.cpp is not built, the error says how it is."""
    with pytest.raises(ToolError, match="not built") as e:
        host.find(tmp_path)
    assert "make setup" in e.value.hint


def test_wheels_repeat(toolchain: host.HostToolchain, tmp_path: Path) -> None:
    """Equal libraries give an equal wheel, the one in the cache."""
    with zipfile.ZipFile(toolchain.wheel) as whole:
        names = [name for name in whole.namelist() if name.startswith("llama_cpp/lib/lib")]
        libraries = [Path(whole.extract(name, tmp_path)) for name in names]
    assert libraries
    assert wheel.pack(toolchain.source, libraries, tmp_path).read_bytes() == toolchain.wheel.read_bytes()


def test_another_archive_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    """A source archive with other bytes is refused before it is unpacked."""
    archive = tmp_path / f"{source.FOLDER}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"), io.BytesIO())
    with pytest.raises(ToolError, match="not the pinned one"):
        source.unpack(archive, tmp_path)
    assert not (tmp_path / "x").exists()
