"""Repeat a release in a clean folder, with an empty DVC cache, and compare every digest of the two manifests.

Rules: the clean folder is a clone at the manifest's commit with the files that differed from it; nothing of the first
build is read but its manifest. Wall-clock figures carry no digest and are not compared, nor is evidence of boards,
which no stage makes: that it is of the released files is a rule of every manifest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.catalog.names import BOARDS
from pipeline.errors import StageError
from pipeline.manifest import statement
from pipeline.manifest.statement import Manifest
from pipeline.ports import git, process
from pipeline.stages.project import MANIFEST_FILE, Project

# The stage does not depend on the commit, so that a commit alone makes no new release.
_ANEW = "dvc repro && dvc repro --force --single-item manifest"


def rebuild(project: Project, into: Path | None = None) -> int:
    """Build the release again and return how many digests were compared.

    Raises:
        StageError: there is nothing to repeat, the commit is no longer checked out, or a digest differs (each named).
        ToolError: the second build failed.
    """
    first = _manifest(project)
    if git.commit(project.root) != first.predicate.source.commit:
        raise StageError(
            f"the release was built from {first.predicate.source.commit[:12]}, which is not checked out",
            hint=f"git checkout {first.predicate.source.commit[:12]}, or write the manifest anew from what is: {_ANEW}",
        )
    with _clean_folder(into) as folder:
        _copy_project(project, folder)
        _repro(folder, str(_registry(project)))
        second = _manifest(Project.load(folder))
    ours, theirs = digests(first), digests(second)
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differing:
        raise StageError(
            f"{len(differing)} of {len(ours)} digests differ: {', '.join(differing[:5])}",
            hint="the build depends on something that is not in the commit: compare the two folders",
        )
    return len(ours)


def digests(manifest: Manifest) -> dict[str, str]:
    """Return every digest in a manifest by its path in the document, but for those of evidence of boards."""
    document = manifest.model_dump(mode="json", by_alias=True)
    for entry in document["predicate"]["variants"]:
        entry["evidence"] = [found for found in entry["evidence"] if found["runner"] not in BOARDS]
    return dict(_walk("", document))


def _walk(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(f"{path}/{key}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            known = inner if isinstance(inner, dict) else {}
            yield from _walk(f"{path}/{known.get('name') or known.get('runner') or index}", inner)
    elif isinstance(value, str) and path.endswith("sha256"):
        yield path, value


def _repro(folder: Path, registry: str) -> None:
    programs = Path(sys.executable).parent  # dvc starts the stages by the name of our command
    env = {"EDGE_RELEASE_REGISTRY": registry, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    process.run([programs / "dvc", "repro"], cwd=folder, env=env, hint="see the messages above", stream=True)


def _manifest(project: Project) -> Manifest:
    path = project.release / MANIFEST_FILE
    if not path.exists():
        raise StageError(f"{path} is missing", hint="run make release first")
    return statement.parse(path.read_bytes())


def _registry(project: Project) -> Path | str:
    url = project.params.release.registry
    return url if "://" in url else (project.root / url).resolve()


@contextlib.contextmanager
def _clean_folder(into: Path | None) -> Iterator[Path]:
    if into is None:
        with tempfile.TemporaryDirectory(prefix="edge-release-rebuild-") as folder:
            yield Path(folder) / "clone"
    elif into.exists() and any(into.iterdir()):
        raise StageError(f"{into} is not empty", hint="give a folder that does not exist yet")
    else:
        yield into


def _copy_project(project: Project, folder: Path) -> None:
    git.clone(project.root, folder)
    for name in git.modified(project.root, ignore=frozenset({"dvc.lock"})):
        source, target = project.root / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        else:
            target.unlink(missing_ok=True)
    (folder / "dvc.lock").unlink(missing_ok=True)
