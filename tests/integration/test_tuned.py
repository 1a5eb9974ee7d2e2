"""Variants tuned to a prompt family: made where they pay, by every stage, and gone where they do not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.catalog.names import RunnerClass, Target, Tier, Variant
from pipeline.manifest.evidence import Evidence
from pipeline.manifest.gate import Check, Proof, gate
from pipeline.manifest.search import Found
from pipeline.ports import llama
from pipeline.stages import findings, manifest, recipes
from pipeline.stages.calibrate import calibrate
from pipeline.stages.certify import certify
from pipeline.stages.check import check
from pipeline.stages.convert import convert
from pipeline.stages.project import Project
from pipeline.stages.quantize import quantize
from pipeline.stages.reference import reference
from pipeline.stages.runtime import runtime
from pipeline.stages.search import search
from pipeline.stages.sensitivity import sensitivity
from tests.support import built, models
from tests.support.projects import gguf_tier, project

pytestmark = [pytest.mark.skipif(bool(built.missing()), reason=built.missing())]
TIER, HOST = Tier.TINY_EDGE, RunnerClass.HOST
HERE = Variant(TIER, Target.X86_64)
LETTERS, BOTH = Variant(TIER, Target.X86_64, "letters"), Variant(TIER, Target.X86_64, "both")
ALPHABETS = {"letters": "bcdfghjk", "digits": "01234567", "both": "bcdf0123"}
TEACHER = {"embedded": {"path": "models/demo/teacher", "digest": "sha256:" + "0" * 64}}
DISTILL = {"layers": [0, 1], "ffn": 512, "steps": 1, "batch": 1, "learning_rate": 0.1}
HALF = 96  # dimensions in which only letters, or only digits, differ from zero


def _texts(family: str, seed: int, count: int) -> list[str]:
    draw = Random(f"{family} {seed}")
    return ["".join(draw.choices(ALPHABETS[family], k=24)) for _ in range(count)]


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _two_minds(folder: Path) -> None:
    """A model whose first feed-forward answers to letters alone, and whose second to digits alone; nothing else acts."""
    models.save(folder, models.llama(hidden_size=256, intermediate_size=512))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    digits = [number for token, number in tokenizer.get_vocab().items() if any(c.isdigit() for c in token)]
    others = [number for number in range(model.config.vocab_size) if number not in set(digits)]
    first, second = (layer.mlp for layer in model.model.layers)
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding[digits, :HALF] = 0
        embedding[others, HALF : 2 * HALF] = 0
        embedding[:, 2 * HALF :] = 0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
        for matrix in (first.gate_proj, first.up_proj, second.gate_proj, second.up_proj):
            matrix.weight.mul_(4)
        for matrix in (first.gate_proj, first.up_proj):
            matrix.weight[:, HALF:] = 0
        for matrix in (second.gate_proj, second.up_proj):
            matrix.weight[:, :HALF] = 0
            matrix.weight[:, 2 * HALF :] = 0
        for matrix in (first.down_proj, second.down_proj):
            matrix.weight[: 2 * HALF] = 0
    model.save_pretrained(folder)


def _budget(made: Project, families: Sequence[str]) -> None:
    path = made.root / "models" / f"{TIER}.yaml"
    content = yaml.safe_load(path.read_text())
    content["recipes"][str(Target.X86_64)]["search"]["families"] = list(families)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A surveyed tier of which letters and digits need different matrices."""
    root = tmp_path_factory.mktemp("tuned")
    tier = gguf_tier(distill=DISTILL, convert={"outtype": "f32", "pre_tokenizer": "gpt-2"})
    types = ["Q2_K", "Q3_K", "Q4_K", "Q6_K", "Q8_0"]
    tier["recipes"][Target.X86_64] = {"search": {"types": types, "preset": "Q4_K_M", "measured": 8}}
    tier["sensitivity"] = {"per_family": 12, "draws": 8}
    made = project(root, TEACHER, {TIER: json.loads(json.dumps(tier))})
    _write(
        root / "calibration.jsonl",
        [{"family": f, "prompt": t[:16], "answer": t[16:]} for f in ALPHABETS for t in _texts(f, 0, 12)],
    )
    golden = [
        {"id": f"{f}-{n}", "family": f, "prompt": t[:16], "expected": t[16:], "max_tokens": 4}
        for f in ALPHABETS
        for n, t in enumerate(_texts(f, 1, 8))
    ]
    _write(root / "golden.jsonl", golden)
    _two_minds(made.model(TIER))
    convert(made, TIER)
    calibrate(made, TIER)
    sensitivity(made, TIER)
    for target in Target:
        runtime(made, target)
        search(made, Variant(TIER, target))
        quantize(made, Variant(TIER, target))
    reference(made, TIER)
    return made


def _build(made: Project, families: Sequence[str]) -> Found:
    _budget(made, families)
    search(made, HERE)
    quantize(made, HERE)
    check(made, [HERE], HOST)
    return Found.model_validate_json(made.search(HERE).read_bytes())


def test_a_family_that_pays_gets_a_variant_and_one_that_does_not_gets_none(surveyed: Project) -> None:
    """Both verdicts stand in the record; the one variant is quantized, checked and certified, within the same budget."""
    found = _build(surveyed, ["letters", "both"])
    pays = {tuned.family: tuned.pays for tuned in found.tuned}
    assert pays == {"letters": True, "both": False}, found.tuned
    assert surveyed.built(HERE) == (HERE, LETTERS)
    assert LETTERS in surveyed.variants()
    own = Found.model_validate_json(surveyed.search(LETTERS).read_bytes())
    assert own.limits == found.limits
    assert own.chosen.measured.mean_kl < found.tuned[0].general
    types = {t.name: t.type for t in llama.header(surveyed.variant(LETTERS) / "model.gguf").tensors}
    assert {name: types[name] for name in own.types} == own.types
    certificates = certify(surveyed, TIER).certificates
    assert len(certificates) == 3


def test_the_gate_judges_it_by_golden_prompts_that_no_search_saw(surveyed: Project) -> None:
    """On its own family it is better than the variant for all prompts; under its kin's file it is not, and is refused."""
    _build(surveyed, ["letters"])
    checks = [Check(f.evidence, f.measurement) for f in findings.read(surveyed).checks]
    assert [c.evidence.variant for c in checks] == [HERE.name, LETTERS.name]

    def objected(found: Sequence[Check]) -> list[str]:
        reasons = gate(Proof(found, variants=[HERE, LETTERS]), surveyed.params, None, None).reasons
        return [reason for reason in reasons if "on its family" in reason]

    assert objected(checks) == []
    plain: Evidence = checks[0].evidence
    same = Check(plain.model_copy(update={"variant": LETTERS.name}), checks[1].measurement)
    assert [reason.partition(":")[0] for reason in objected([checks[0], same])] == [f"{LETTERS} on host"]


def test_a_manifest_carries_it_beside_its_kin(surveyed: Project) -> None:
    """Its entry has its family, recipe, record, certificate and evidence; the verdicts stand in its kin's."""
    _build(surveyed, ["letters"])
    certify(surveyed, TIER)
    found = findings.read(surveyed)
    released = {f"{v}/model.gguf": surveyed.variant(v) / "model.gguf" for v in (HERE, LETTERS)}
    plain, own = (manifest._entry(surveyed, v, found, released) for v in (HERE, LETTERS))
    assert (plain.name, plain.family, own.name, own.family) == (HERE.name, None, LETTERS.name, "letters")
    assert own.recipe == recipes.recipe(surveyed, LETTERS.name).model_dump(mode="json") != plain.recipe
    assert plain.search is not None
    assert [(t.family, t.pays) for t in plain.search.tuned] == [("letters", True)]
    assert own.certificate is not None
    for entry in (plain, own):
        (evidence,) = entry.evidence
        assert set(evidence.quality.families) == set(ALPHABETS)
    assert {c.tensor for c in recipes.changes(surveyed, HERE.name, LETTERS.name)} >= {"blk.1.ffn_up.weight"}


def test_what_pays_no_more_is_gone(surveyed: Project) -> None:
    """Without the family in the budget its recipe, files and evidence go, and the variant for all prompts is as it was."""
    _build(surveyed, ["letters"])
    before = surveyed.recipe_file(HERE).read_bytes(), (surveyed.variant(HERE) / "model.gguf").read_bytes()
    found = _build(surveyed, ["both"])
    assert [(tuned.family, tuned.pays) for tuned in found.tuned] == [("both", False)]
    assert surveyed.found(HERE) == surveyed.built(HERE) == (HERE,)
    left = [p for p in surveyed.build.rglob("*+*") if "trials" not in p.parts]
    assert left == []
    assert (surveyed.recipe_file(HERE).read_bytes(), (surveyed.variant(HERE) / "model.gguf").read_bytes()) == before
