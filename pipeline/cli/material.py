"""What a report is made from: a published release, the one built here, or the evidence of one that was refused.

Rules: a published release verifies before anything of it is read, an earlier one before it is compared with; the built
manifest counts only while the gate's verdict stands, because a refusal leaves the last manifest behind. What cannot be
had is left out with a note, unless it was asked for by name.
"""

from __future__ import annotations

from pipeline.catalog.names import RunnerClass
from pipeline.catalog.params import Teacher
from pipeline.cli.access import Access
from pipeline.cli.consume import fetch
from pipeline.errors import CatalogError, RegistryError, StageError, TrustError
from pipeline.manifest import statement
from pipeline.manifest.statement import Manifest, Verdict
from pipeline.ports import git
from pipeline.report import durations, subject
from pipeline.report.durations import Durations
from pipeline.report.model import Material
from pipeline.report.subject import Before, Origin, Subject
from pipeline.stages import describe, findings, gate, previous
from pipeline.stages.manifest import recipe
from pipeline.stages.previous import Previous
from pipeline.stages.project import MANIFEST_FILE, Project


def collect(access: Access) -> Material:
    """Return what the flags name, with the release to compare it with.

    Raises:
        StageError: nothing was built or checked here.
        CatalogError, RegistryError, TrustError: what was named cannot be had or is not trusted.
    """
    args, project = access.args, access.project
    if project is None or args.channel or args.release or args.registry:
        accepted = fetch(access)
        about = subject.of_manifest(accepted.manifest, accepted.digest, published=True)
    else:
        about = _built(project) or _evidence(project)
    own = project if project and project.params.release.line == about.line else None
    before, notes = _before(access, about)
    if own is None:
        notes.append(
            "Prices, memory bounds and channel policies are in the publisher's params.yaml, which is not here."
        )
    return Material(
        about,
        before=before,
        params=own.params if own else None,
        durations=_durations(own) if own else {},
        notes=notes,
    )


def _built(project: Project) -> Subject | None:
    path = project.release / MANIFEST_FILE
    if not path.exists():
        return None
    data = path.read_bytes()
    manifest = statement.parse(data)
    if not _stands(project, manifest):
        return None
    return subject.of_manifest(manifest, statement.digest(data), published=False)


def _stands(project: Project, manifest: Manifest) -> bool:
    """Return whether the gate still says what the manifest says: it removes its verdict when it refuses."""
    if project.gate.exists():
        return Verdict.model_validate_json(project.gate.read_bytes()) == manifest.predicate.gate
    found = findings.read(project)
    return not found.checks and not found.missing


def _evidence(project: Project) -> Subject:
    found = findings.read(project)
    if not found.checks and not found.missing:
        raise StageError(
            "nothing has been built or checked here", hint="dvc repro, or name a published release with --channel"
        )
    proof, release, variants = gate.proof(project), project.params.release, project.variants()
    return subject.of_evidence(
        proof,
        found.missing,
        gate.judge(project, proof, _looked_up(project)),
        line=release.line,
        version=release.version,
        tag=release.tag,
        origin=Origin(
            git.commit(project.root),
            git.modified(project.root, ignore=frozenset({"dvc.lock"})),
            _teacher(project.params.teacher),
        ),
        recipes={variant: recipe(project, variant) for variant in variants},
        searches={v: s for v in variants if (s := findings.search(project, v))},
        models={v: describe.model_config(project.variant(v)) for v in variants if project.variant(v).exists()},
    )


def _teacher(teacher: Teacher) -> str | None:
    if teacher.hub:
        return f"hf://{teacher.hub.repo}@{teacher.hub.revision}"
    return teacher.embedded.path if teacher.embedded else None


def _looked_up(project: Project) -> Previous:
    """Return what the stage `previous` found, and nothing where it has not run."""
    return Previous.model_validate_json(project.previous.read_bytes()) if project.previous.exists() else Previous()


def _before(access: Access, about: Subject) -> tuple[Before | None, list[str]]:
    wanted = access.args.previous or about.verdict.previous_version
    if wanted is None:
        return None, []
    try:
        return subject.before(previous.fetch(access.store, access.opener, about.line, wanted)), []
    except (CatalogError, RegistryError, TrustError) as e:
        if access.args.previous:
            raise
        return _remembered(access, wanted, e.message)


def _remembered(access: Access, wanted: int, why: str) -> tuple[Before | None, list[str]]:
    """Return what the gate compared with as the stage `previous` kept it, where the registry does not give it."""
    kept = _looked_up(access.project) if access.project else Previous()
    if kept.version != wanted or kept.verdict is None:
        return None, [f"Not compared with release {wanted}: {why}."]
    note = f"Release {wanted} was compared by the figures that the gate used; its files were not: {why}."
    return Before(wanted, kept.verdict.rows), [note]


def _durations(project: Project) -> dict[tuple[str, RunnerClass], Durations]:
    paths = {(v.name, runner): project.benchmark(v, runner) for v in project.variants() for runner in RunnerClass}
    return {key: durations.parse(path.read_bytes(), str(path)) for key, path in paths.items() if path.exists()}
