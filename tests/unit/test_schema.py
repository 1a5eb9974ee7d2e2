"""The schemas in manifests/schema are what the code reads and writes."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from pipeline.catalog.names import VARIANTS
from pipeline.cli.reference import reference
from pipeline.cli.schema import MODELS, schemas
from tests.support.evidence import evidence, measurement

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(schemas()))
def test_the_committed_schema_is_current(name: str) -> None:
    """Each committed schema equals what `make schema` writes now."""
    assert (ROOT / "manifests/schema" / name).read_bytes() == schemas()[name]
    assert len(list((ROOT / "manifests/schema").iterdir())) == len(MODELS)


def test_the_committed_reference_is_current() -> None:
    """`docs/settings.md` is what `make schema` writes now, and says of every key what it means."""
    text = (ROOT / "docs/settings.md").read_text()
    assert text == reference()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if len(row) != 4 or not row[3].rstrip(" |")] == []


def test_evidence_and_catalog_validate_against_their_schemas() -> None:
    """A stock JSON Schema validator accepts what this project writes and reads."""

    def check(document: object, name: str) -> None:
        schema = yaml.safe_load(schemas()[f"{name}.json"])
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(document, schema, jsonschema.Draft202012Validator)

    check(evidence(VARIANTS[0]).model_dump(mode="json"), "evidence-v1")
    check(measurement(VARIANTS[0]).model_dump(mode="json"), "measurement-v1")
    check(yaml.safe_load((ROOT / "params.yaml").read_text()), "params")
    for tier in ("tiny-edge", "mid-tier", "large"):
        check(yaml.safe_load((ROOT / f"models/{tier}.yaml").read_text()), "tier")
    check(yaml.safe_load((ROOT / "manifests/k8s/deploy.yaml").read_text()), "deploy")
    for scenario in sorted((ROOT / "pipeline/lab/simulation/scenarios").glob("*.yaml")):
        check(plain(yaml.safe_load(scenario.read_text())), "scenario")


def plain(value: object) -> object:
    """Return what YAML read without its own type of time, which JSON has as text."""
    return json.loads(json.dumps(value, default=str))
