"""SLSA provenance v1 over the same subjects as the manifest.

Source: https://slsa.dev/spec/v1.1/provenance.

Rules: only what is known without a clock or a random number goes in, so that the same commit gives the same bytes.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pipeline.errors import Refusal, TrustError
from pipeline.manifest.encoding import Record, canonical, decode
from pipeline.manifest.statement import STATEMENT_TYPE, Manifest, Subject

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://edge-release.dev/dvc/v1"


class _Statement(Record):
    predicate_type: str = Field(alias="predicateType")
    subject: list[Subject]


def build(
    manifest: Manifest, *, builder: str, parameters: dict[str, Any], dependencies: dict[str, dict[str, str]]
) -> bytes:
    """Return the provenance statement.

    Args:
        builder: URI of who ran the build.
        parameters: what the user chose (`params.yaml` and `models/*.yaml`).
        dependencies: digest sets of what went in, by URI.
    """
    return canonical(
        {
            "_type": STATEMENT_TYPE,
            "subject": [s.model_dump(mode="json") for s in manifest.subject],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "buildDefinition": {
                    "buildType": BUILD_TYPE,
                    "externalParameters": parameters,
                    "resolvedDependencies": [
                        {"uri": uri, "digest": digest} for uri, digest in sorted(dependencies.items())
                    ],
                },
                "runDetails": {"builder": {"id": builder}},
            },
        }
    )


def check_covers(payload: bytes, manifest: Manifest) -> None:
    """Raise TrustError MIXED unless a verified provenance payload has exactly the manifest's subjects."""
    found = decode(payload, _Statement, "provenance")
    if found.predicate_type != PREDICATE_TYPE or _pairs(found.subject) != _pairs(manifest.subject):
        raise TrustError(Refusal.MIXED, "the provenance and the manifest speak of different files")


def _pairs(subjects: list[Subject]) -> list[tuple[str, str]]:
    return sorted((s.name, s.digest.sha256) for s in subjects)
