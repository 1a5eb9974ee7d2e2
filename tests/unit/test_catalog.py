"""The catalog: what params.yaml, models/*.yaml and the prompt files may say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalog.document import parse_yaml
from pipeline.catalog.golden import GoldenPrompt, Match, parse_golden
from pipeline.catalog.names import FAMILY, VARIANTS, Tier, Variant
from pipeline.catalog.params import Params
from pipeline.catalog.recipe import PRESETS, Recipe, Search
from pipeline.catalog.tiers import TierFile
from pipeline.errors import CatalogError, PipelineError
from pipeline.manifest.names import safe_name
from pipeline.stages.project import Project
from tests.support.projects import gguf_tier, project

ROOT = Path(__file__).parents[2]
PARAMS = (ROOT / "params.yaml").read_text()


def test_the_repository_s_own_catalog_is_valid() -> None:
    """The shipped params.yaml, models/*.yaml and prompt files load."""
    project = Project.load(ROOT)
    assert {project.tier(tier).tier for tier in Tier} == set(Tier)
    assert len({p.family for p in project.golden()}) >= 5
    assert project.calibration()
    assert project.distillation()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(("valid_days: 365", "valid_dais: 365"), "unknown key 'release.valid_dais', allowed here: line,", id="misspelt"),
        pytest.param(("valid_days: 365", ""), "key 'release.valid_days' is missing", id="missing"),
        pytest.param(("valid_days: 365", "valid_days: '365'"), "release.valid_days: .*found '365'", id="quoted number"),
        pytest.param(("valid_days: 365", "valid_days: 0"), "release.valid_days: .*greater than or equal to 1", id="zero"),
        pytest.param(("valid_days: 365", "valid_days: 365\n  valid_days: 9"), "'valid_days' is given twice", id="twice"),
        pytest.param(("line: edge-demo", "line: ../evil"), "release.line: .*pattern", id="path as a line"),
        pytest.param(("  dev: {arm64", "  nightly: {arm64"), "channels.nightly", id="unknown channel"),
        pytest.param(("dev: {arm64: [host]", "dev: {arm64: [pi6]"), "channels.dev.arm64.0: .*'pi5'", id="unknown runner class"),
        pytest.param(("exact_match_min: 0.9,", "exact_match_min: .nan,"), "exact_match_min", id="NaN"),
        pytest.param(("teacher:", "teacher: ["), "not YAML", id="not YAML"),
        pytest.param(("  embedded:", "  hub: {repo: a/b, revision: main}\n  embedded:"), "teacher.hub.revision", id="a branch"),
    ],
)  # fmt: skip
def test_what_the_schema_does_not_allow_is_refused_with_file_key_and_what_is_allowed(
    change: tuple[str, str], says: str
) -> None:
    """A wrong params.yaml ends in one error that names the file, the key and what is allowed."""
    before, after = change
    assert before in PARAMS
    with pytest.raises(CatalogError) as e:
        parse_yaml(PARAMS.replace(before, after), Params, "params.yaml")
    assert e.value.message.startswith("params.yaml: ")
    assert re.search(says, e.value.message)
    assert e.value.hint


def test_a_missing_tier_limit_is_refused() -> None:
    """Thresholds must cover every tier."""
    document = yaml.safe_load(PARAMS)
    del document["thresholds"]["tiers"]["large"]
    with pytest.raises(CatalogError, match="limits are needed for tiny-edge, mid-tier, large"):
        parse_yaml(yaml.safe_dump(document), Params, "params.yaml")


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """No text makes the catalog's parser fail in another way than by its own error."""
    try:
        parse_yaml(text, TierFile, "x.yaml")
    except PipelineError as e:
        assert "x.yaml" in e.message


def test_there_are_nine_variants_and_their_names_parse() -> None:
    """Tier times target gives nine variants, each found by its name."""
    assert len(VARIANTS) == 9
    assert [Variant.parse(v.name) for v in VARIANTS] == list(VARIANTS)


@given(st.sampled_from(VARIANTS), st.from_regex(FAMILY, fullmatch=True))
def test_a_tuned_variant_is_called_after_its_kin_and_family(plain: Variant, family: str) -> None:
    """Name and parse are inverse, the name is safe in a registry, and the variant for all prompts is known from it."""
    tuned = Variant(plain.tier, plain.target, family)
    assert tuned.name == f"{plain.name}+{family}"
    assert Variant.parse(safe_name(tuned.name)) == tuned
    assert (tuned.plain, plain.plain) == (plain, plain)


@pytest.mark.parametrize(
    "name", ["tiny-edge-arm64+", "tiny-edge-arm64+A", "tiny-edge-arm64+a+b", "+a", "tiny-edge+a", "x-arm64+a"]
)
def test_no_other_names_are_variants(name: str) -> None:
    """A family that is empty, or not written as families are, makes no variant."""
    with pytest.raises(ValueError, match="no variant"):
        Variant.parse(name)
    with pytest.raises(ValueError, match="tiny-edge-arm64, "):
        Variant.parse("tiny-edge-mips")


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        pytest.param("base: Q4_K_X", "allowed are F32, F16", id="unknown preset"),
        pytest.param(
            "base: Q4_0\ntensors: [token_embd.weight=Q9]",
            "'token_embd.weight=Q9' is not PATTERN=TYPE",
            id="unknown type",
        ),
        pytest.param("base: Q4_0\ntensors: ['[=Q8_0']", "not a regular expression", id="bad pattern"),
    ],
)
def test_a_recipe_names_only_what_llama_cpp_knows(recipe: str, says: str) -> None:
    """Unknown presets, types and broken patterns are refused by name."""
    with pytest.raises(CatalogError, match=re.escape(says)):
        parse_yaml(recipe, Recipe, "recipe")


@pytest.mark.parametrize(
    ("families", "says"),
    [
        pytest.param("[a, a]", "a stands twice", id="twice"),
        pytest.param("[A]", "families.0: .*pattern", id="no family's name"),
    ],
)
def test_a_budget_names_each_family_once(families: str, says: str) -> None:
    """Families to tune to are refused where no variant could be called after them, or one stands twice."""
    with pytest.raises(CatalogError, match=says):
        parse_yaml(f"search: {{preset: Q4_0, families: {families}}}", Search, "models/tiny-edge.yaml")


def test_a_family_without_calibration_examples_is_refused(tmp_path: Path) -> None:
    """The error names the key, the family, and the families there are; the other targets are not held up."""
    recipes = {**gguf_tier()["recipes"], "arm64": {"search": {"preset": "Q4_0", "families": ["total", "lookup"]}}}
    source = {"embedded": {"path": "x", "digest": f"sha256:{'0' * 64}"}}
    hub = {"repo": "a/b", "revision": "0" * 40}
    made = project(tmp_path, source, {"tiny-edge": gguf_tier(hub=hub, recipes=recipes)})
    with pytest.raises(CatalogError, match=r"recipes\.arm64\.search\.families: .* 'lookup'") as caught:
        made.chosen(Variant.parse("tiny-edge-arm64"))
    assert caught.value.hint == "calibration.jsonl has total"
    assert made.chosen(Variant.parse("tiny-edge-x86_64"))


def test_a_recipe_s_digest_is_over_all_that_affects_bytes() -> None:
    """Any change of a recipe, even the order of its patterns, changes the digest; writing it anew does not."""
    one = Recipe(base="Q4_0", tensors=["a=Q8_0", "b=Q6_K"])
    others = [
        Recipe(base="Q4_1", tensors=["a=Q8_0", "b=Q6_K"]),
        Recipe(base="Q4_0", imatrix=False, tensors=["a=Q8_0", "b=Q6_K"]),
        Recipe(base="Q4_0", tensors=["b=Q6_K", "a=Q8_0"]),
    ]
    assert len({r.digest for r in [one, *others]}) == 4
    assert one.digest == Recipe.model_validate_json(one.model_dump_json()).digest
    assert len(set(PRESETS.values())) == len(PRESETS)


@pytest.mark.parametrize(
    ("match", "expected", "answer", "ok"),
    [
        pytest.param(Match.EXACT, "42", " 42\n", True, id="exact strips"),
        pytest.param(Match.EXACT, "42", "42.", False, id="exact is exact"),
        pytest.param(Match.PREFIX, "aisle 3", "aisle 3 shelf B", True, id="prefix"),
        pytest.param(Match.CONTAINS, "shelf", "aisle 3 shelf B", True, id="contains"),
        pytest.param(Match.REGEX, r"\d+", "42", True, id="regex"),
        pytest.param(Match.REGEX, r"\d+", "42 kg", False, id="regex is whole"),
    ],
)
def test_match_rules(match: Match, expected: str, answer: str, ok: bool) -> None:
    """Each match rule accepts what it says and nothing more."""
    prompt = GoldenPrompt(id="a", family="f", prompt="p", expected=expected, match=match, max_tokens=8)
    assert prompt.accepts(answer) is ok


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        pytest.param("", "no line in it", id="empty"),
        pytest.param("{", ":1: not JSON", id="not JSON"),
        pytest.param('{"id": "a"}', "key 'family' is missing", id="missing key"),
        pytest.param('{"id":"a","family":"f","prompt":"p","expected":"x","max_tokens":4,"score":1}', "unknown key 'score'", id="unknown"),
        pytest.param('{"id":"a","family":"f","prompt":"p","expected":"(","match":"regex","max_tokens":4}', "regular expression", id="regex"),
        pytest.param('{"id":"a","family":"f","prompt":"p","expected":"x","max_tokens":4}\n' * 2, "'a' stands twice", id="id twice"),
    ],
)  # fmt: skip
def test_a_prompt_file_is_refused_with_file_and_line(lines: str, says: str) -> None:
    """A wrong golden file names file, line and what is wrong."""
    with pytest.raises(CatalogError, match=re.escape(says)) as e:
        parse_golden(lines, "golden.jsonl")
    assert "golden.jsonl" in e.value.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("tier: large\nshard: {degree: 2}\nconvert: {}", "nothing else", id="large with convert"),
        pytest.param("tier: large", "needs 'shard'", id="large without shard"),
        pytest.param("tier: tiny-edge\nconvert: {}", "exactly one of 'distill' and 'hub'", id="no source"),
    ],
)
def test_a_tier_file_is_complete(text: str, says: str) -> None:
    """A tier has one source and all that its kind needs."""
    with pytest.raises(CatalogError, match=re.escape(says)):
        parse_yaml(f"{text}\nlicense: mit\nhub: null\ndistill: null", TierFile, "models/x.yaml")
