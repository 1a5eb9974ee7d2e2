"""What a report is about: a release, built or published, or the evidence of one that there is not.

Rules: everything stands as the manifest's own records have it; what is not known of mere evidence is None or empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from pipeline.catalog.names import GGUF_TIERS, RunnerClass, Variant
from pipeline.manifest.evidence import Certificate, File, Missing
from pipeline.manifest.gate import Check, Proof
from pipeline.manifest.search import Found
from pipeline.manifest.statement import Manifest, ModelConfig, Row, RuntimeEntry, VariantEntry, Verdict


class State(StrEnum):
    """How far the release has come."""

    PUBLISHED = "published"
    BUILT = "built"
    EVIDENCE = "evidence"


@dataclass(frozen=True)
class Part:
    """One variant; `signed` are the runner classes whose evidence carries a signature of its own."""

    variant: Variant
    files: Sequence[File]
    recipe: Mapping[str, Any]
    format: str | None = None
    model: ModelConfig | None = None
    checks: Sequence[Check] = ()
    missing: Sequence[Missing] = ()
    signed: frozenset[RunnerClass] = frozenset()
    search: Found | None = None

    @property
    def base(self) -> str | None:
        """The recipe in a word: the preset of a GGUF variant, the type of a sharded one's matrices."""
        word = self.recipe.get("base", self.recipe.get("matrices"))
        return None if word is None else str(word)


@dataclass(frozen=True)
class Origin:
    """What it was made from; `modified` are files that differed from `commit`."""

    commit: str | None = None
    modified: Sequence[str] = ()
    teacher: str | None = None
    teacher_sha256: str | None = None


@dataclass(frozen=True)
class Subject:
    """What is reported on.

    `digest` is of the manifest as it lies there, signed or not; `files` are all of the release's, None where there is
    no release.
    """

    state: State
    line: str
    version: int
    tag: str
    verdict: Verdict
    parts: Sequence[Part]
    origin: Origin
    certificates: Sequence[Certificate] = ()
    runtimes: Sequence[RuntimeEntry] = ()
    toolchain: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, File] | None = None
    expires: datetime | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Before:
    """The previous release: what its gate compared, and its files where its manifest could be read."""

    version: int
    rows: Sequence[Row]
    files: Mapping[str, File] | None = None


def of_manifest(manifest: Manifest, digest: str, *, published: bool) -> Subject:
    """Return a release as what is reported on; a published one has been verified by the caller."""
    release, predicate = manifest.release, manifest.predicate
    certificates = {v.certificate.model_sha256: v.certificate for v in predicate.variants if v.certificate}
    return Subject(
        state=State.PUBLISHED if published else State.BUILT,
        line=release.line,
        version=release.version,
        tag=release.tag,
        verdict=predicate.gate,
        parts=[_part(entry) for entry in predicate.variants],
        origin=Origin(
            predicate.source.commit,
            predicate.source.modified,
            predicate.source.teacher,
            predicate.source.teacher_sha256,
        ),
        certificates=list(certificates.values()),
        runtimes=predicate.runtimes,
        toolchain=predicate.toolchain,
        files=manifest.files(),
        expires=release.expires,
        digest=digest,
    )


def of_evidence(
    proof: Proof,
    missing: Sequence[Missing],
    verdict: Verdict,
    *,
    line: str,
    version: int,
    tag: str,
    origin: Origin,
    recipes: Mapping[Variant, Mapping[str, Any]],
    models: Mapping[Variant, ModelConfig],
    searches: Mapping[Variant, Found],
) -> Subject:
    """Return what is known where no release was made: the checks, and the verdict over them.

    Args:
        recipes: of every variant that is to be shown.
        models: of the variants that were built.
        searches: of the variants whose recipe was searched for.
    """
    parts = []
    for variant, recipe in recipes.items():
        checks = [c for c in proof.checks if c.evidence.variant == variant.name]
        parts.append(
            Part(
                variant=variant,
                files=_released(checks),
                recipe=recipe,
                format="gguf" if variant.tier in GGUF_TIERS else "safetensors",
                model=models.get(variant),
                checks=checks,
                missing=[m for m in missing if m.variant == variant.name],
                search=searches.get(variant),
            )
        )
    return Subject(
        state=State.EVIDENCE, line=line, version=version, tag=tag, verdict=verdict, parts=parts, origin=origin,
        certificates=proof.certificates,
    )  # fmt: skip


def before(manifest: Manifest) -> Before:
    """Return a previous release's manifest as what is compared with."""
    return Before(manifest.release.version, manifest.predicate.gate.rows, manifest.files())


def _part(entry: VariantEntry) -> Part:
    measured = {m.runner: m for m in entry.measurements}
    base = entry.recipe.get("base")
    return Part(
        variant=entry.variant,
        files=entry.files,
        recipe=entry.recipe,
        format=entry.format,
        model=entry.model,
        checks=[Check(e, measured.get(e.runner), str(base) if base else None) for e in entry.evidence],
        missing=entry.missing,
        signed=frozenset(a.runner for a in entry.attestations),
        search=entry.search,
    )


def _released(checks: Sequence[Check]) -> Sequence[File]:
    return checks[0].evidence.files if checks else []
