"""Stage `manifest`: the unsigned statements of a release, manifest and SLSA provenance.

Rules: every byte follows from the commit, the parameters and the files; no clock but the commit's. What varies from
run to run (wall-clock figures) is carried as numbers and never digested.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from pipeline.catalog.names import GGUF_TIERS, Target, Tier, Variant
from pipeline.errors import StageError
from pipeline.manifest import provenance, statement
from pipeline.manifest.encoding import canonical, sha256
from pipeline.manifest.evidence import File
from pipeline.manifest.statement import Manifest, Predicate, ReleaseName, RuntimeEntry, Source, VariantEntry, Verdict
from pipeline.ports import files, git
from pipeline.registry import indexes
from pipeline.stages import describe, findings
from pipeline.stages.check import listed
from pipeline.stages.findings import Findings
from pipeline.stages.project import HINT, MANIFEST_FILE, MODEL, PROVENANCE_FILE, Project
from pipeline.toolchain import source as toolchain

TOOLS = "requirements/tools.yaml"  # versions that stages depend on

# Stages whose lock entries decide the released bytes; checks and gate carry wall-clock figures.
_BYTES = ("teacher", "distill", "convert", "calibrate", "search", "quantize", "runtime", "shard")


def write(project: Project) -> Manifest:
    """Write both statements into `project.release` and return the manifest.

    Raises:
        StageError, ToolError: a stage has not run, or this is no git repository.
    """
    manifest = statement.build(_predicate(project))
    with files.new_folder(project.release) as folder:
        (folder / MANIFEST_FILE).write_bytes(manifest.encode())
        (folder / PROVENANCE_FILE).write_bytes(_provenance(project, manifest))
    return manifest


def released_files(project: Project) -> dict[str, Path]:
    """Return every file of the release by its subject name, `<folder>/<file>`; raises StageError where one is missing.

    A variant's are its folder's and the golden prompts; a runtime's are its programs.
    """
    variants = project.variants()
    folders = {variant.name: project.variant(variant) for variant in variants}
    folders |= {statement.runtime_name(target): project.runtime(target) for target in Target}
    found = {f"{variant}/{statement.GOLDEN}": project.golden_file for variant in variants}
    for name, folder in folders.items():
        inside = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        if not inside:
            raise StageError(f"{name} has not been built", hint="run dvc repro")
        found |= {f"{name}/{p.relative_to(folder).as_posix()}": p for p in inside}
    return found


def lock_digest(lock: str) -> str:
    """Return the digest over the lock entries of the stages that decide the released bytes."""
    entries = yaml.safe_load(lock)["stages"]
    return sha256(canonical({name: entry for name, entry in entries.items() if name.split("@")[0] in _BYTES}))


def tools(project: Project) -> dict[str, str]:
    """Return the versions of what decides bytes; raises StageError where one is not that which stages depend on."""
    pinned = files.load(project.root / TOOLS, lambda text, _: yaml.safe_load(text), hint=HINT)
    installed = {name: version(name) for name in pinned}
    for name, found in installed.items():
        if found.partition("+")[0] not in pinned[name]:
            raise StageError(
                f"{name} {found} is installed, {TOOLS} has {' or '.join(pinned[name])}",
                hint="make setup, then make again what was made without it: dvc repro --force",
            )
    return {
        **installed,
        "llama-cpp-python": toolchain.VERSION,
        "llama.cpp": toolchain.LLAMA_COMMIT,
        "llama-cpp-python-sdist-sha256": toolchain.SHA256,
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def _predicate(project: Project) -> Predicate:
    found, released = findings.read(project), released_files(project)
    release = project.params.release
    expires = git.commit_time(project.root) + timedelta(days=release.valid_days)
    return Predicate(
        release=ReleaseName(line=release.line, version=release.version, tag=release.tag, expires=expires),
        source=_source(project),
        toolchain=tools(project),
        variants=[_entry(project, variant, found, released) for variant in project.variants()],
        runtimes=[
            RuntimeEntry(name=name, target=target, files=_listed(name, released))
            for target in Target
            for name in [statement.runtime_name(target)]
        ],
        gate=Verdict.model_validate_json(project.gate.read_bytes()),
    )


def _source(project: Project) -> Source:
    teacher = json.loads(project.teacher_record.read_bytes())
    return Source(
        commit=git.commit(project.root),
        modified=git.modified(project.root, ignore=frozenset({"dvc.lock"})),
        lock_sha256=lock_digest((project.root / "dvc.lock").read_text(encoding="utf-8")),
        teacher=_origin(teacher),
        teacher_sha256=teacher["digest"].removeprefix("sha256:"),
        golden_sha256=files.sha256_file(project.golden_file),
    )


def _origin(record: dict[str, Any]) -> str:
    hub = record.get("hub")
    return f"hf://{hub['repo']}@{hub['revision']}" if hub else str(record["embedded"])


def _listed(folder: str, released: dict[str, Path]) -> list[File]:
    within = {name.removeprefix(f"{folder}/"): path for name, path in released.items() if name.startswith(f"{folder}/")}
    return [listed(name, path) for name, path in sorted(within.items())]


def _entry(project: Project, variant: Variant, found: Findings, released: dict[str, Path]) -> VariantEntry:
    checks = [c for c in found.checks if c.evidence.variant == variant.name]
    held = _listed(variant.name, released)
    model = next((f.sha256 for f in held if f.name == MODEL), None)
    return VariantEntry(
        name=variant.name,
        tier=variant.tier,
        target=variant.target,
        family=variant.family or None,
        format="gguf" if variant.tier in GGUF_TIERS else "safetensors",
        files=held,
        recipe=recipe(project, variant),
        model=describe.model_config(project.variant(variant)),
        evidence=[c.evidence for c in checks],
        measurements=[c.measurement for c in checks if c.measurement],
        missing=[m for m in found.missing if m.variant == variant.name],
        search=findings.search(project, variant),
        chunks=indexes.of((file, released[f"{variant.name}/{file.name}"]) for file in held),
        certificate=next((c for c in findings.certificates(project, variant.tier) if c.model_sha256 == model), None),
    )


def recipe(project: Project, variant: Variant) -> dict[str, Any]:
    """Return how a variant is made: its quantization recipe, or how it is sharded."""
    found = project.recipe(variant) if variant.tier in GGUF_TIERS else project.tier(variant.tier).shard
    assert found is not None, "the catalog gives the large tier a shard"
    return found.model_dump(mode="json")


def _provenance(project: Project, manifest: Manifest) -> bytes:
    chosen = ["params.yaml", *(f"models/{tier}.yaml" for tier in Tier)]
    made_from = manifest.predicate.source
    return provenance.build(
        manifest,
        builder=os.environ.get("EDGE_RELEASE_BUILDER", "https://edge-release.dev/builder/local/v1"),
        parameters={name: yaml.safe_load((project.root / name).read_text(encoding="utf-8")) for name in chosen},
        dependencies={
            f"git+{project.params.release.line}@{made_from.commit}": {"gitCommit": made_from.commit},
            made_from.teacher: {"sha256": made_from.teacher_sha256},
            f"pkg:pypi/{toolchain.PACKAGE}@{toolchain.VERSION}": {"sha256": toolchain.SHA256},
        },
    )
