"""The teacher, and a tier's own model: from the hub or the repository into a folder of the build.

Rules: what is taken is pinned, a hub repository by its commit and an embedded folder by its tree's digest; the folder
appears whole or not at all; the record beside it says where it came from and the digest of its tree.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.catalog.names import Tier
from pipeline.catalog.tiers import EmbeddedSource, HubSource
from pipeline.errors import StageError
from pipeline.manifest.encoding import canonical
from pipeline.model import hf
from pipeline.ports import files
from pipeline.ports.hub import Hub
from pipeline.stages.project import Project


def fetch(project: Project, hub: Hub | None = None) -> Path:
    """Put the teacher into `project.teacher` and return that folder.

    Args:
        hub: where repositories come from; by default what HF_ENDPOINT, HF_TOKEN and HF_HOME say.

    Raises:
        StageError: it is not what was pinned, or not a model this pipeline can use.
        ToolError: the hub cannot be reached or refuses.
    """
    source = project.params.teacher.hub or project.params.teacher.embedded
    assert source is not None, "params.yaml names exactly one source"
    if isinstance(source, HubSource):
        return _from_hub(source, project.teacher, project.teacher_record, hub)
    return _from_folder(source, project)


def fetch_tier(project: Project, tier: Tier, hub: Hub | None = None) -> Path:
    """Put a tier's own hub repository, else the teacher, into `project.model(tier)` and return that folder.

    Raises:
        StageError, ToolError: as `fetch`, or there is no teacher.
    """
    source, target, record = project.tier(tier).hub, project.model(tier), project.distillation_report(tier)
    if source is None:
        origin = {"teacher": project.teacher.relative_to(project.root).as_posix()}
        return _place(_inside(at_hand(project)), target, record, origin, link=True)
    return _from_hub(source, target, record, hub)


def at_hand(project: Project) -> Path:
    """Return the teacher's folder; raises StageError where it has not been fetched."""
    if not (project.teacher / hf.CONFIG).exists():
        raise StageError(f"{project.teacher}: no teacher", hint="run 'edge-release teacher' first")
    return project.teacher


def _from_hub(source: HubSource, target: Path, record: Path, hub: Hub | None) -> Path:
    hub = hub or Hub.of(os.environ)
    wanted = hub.files(source.repo, source.revision)
    weights = [file for file in wanted if file.name.endswith(".safetensors")]
    if not weights:
        raise StageError(
            f"{source.repo} has no weights as model*.safetensors", hint="choose a repository with safetensors"
        )
    got: list[tuple[Path, str]] = []
    # Weights last: a config that asks for code is refused before gigabytes are fetched for nothing.
    for file in [file for file in wanted if file not in weights] + weights:
        path = hub.download(source.repo, source.revision, file)
        hf.refuse_code(path, file.name)
        got.append((path, file.name))
    return _place(got, target, record, {"hub": source.model_dump()}, link=True)


def _from_folder(source: EmbeddedSource, project: Project) -> Path:
    folder = project.root / source.path
    if not folder.is_dir():
        raise StageError(f"{folder}: no such folder", hint="mend teacher.embedded.path in params.yaml")
    found = files.tree_digest(folder)
    if found != source.digest:
        raise StageError(
            f"{folder}: digest {found}, pinned is {source.digest}",
            hint="restore the folder, or pin the digest found in params.yaml",
        )
    return _place(_inside(folder), project.teacher, project.teacher_record, {"embedded": source.path}, link=False)


def _inside(folder: Path) -> list[tuple[Path, str]]:
    return [(path, path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file()]


def _place(
    parts: Iterable[tuple[Path, str]], target: Path, record: Path, origin: Mapping[str, object], *, link: bool
) -> Path:
    with files.new_folder(target) as folder:
        for path, name in parts:
            files.put(path, folder / name, link=link)
        hf.check(folder)
    files.write(record, canonical({**origin, "digest": files.tree_digest(target)}) + b"\n")
    return target
