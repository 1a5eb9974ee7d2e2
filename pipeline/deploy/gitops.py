"""A release in a GitOps repository, which Argo CD or Flux brings to the cluster: one file an object, one commit a
release.

Rules: the files are those that were rendered, byte for byte, and a kustomization that lists them; the folder is ours
alone, so what is not rendered any more goes; nothing outside it is touched; the same release twice is no commit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.deploy import base
from pipeline.deploy.changes import Change, Seen, plan
from pipeline.deploy.render import Wanted, document_bytes, key, listed
from pipeline.errors import CatalogError, ConflictError
from pipeline.ports import files, git
from pipeline.ports.kube import Object

KUSTOMIZATION = "kustomization.yaml"
TRIES = 3  # when somebody else pushes meanwhile

# What is there to what is to be there, and the message that says so.
Edit = Callable[[list[Object]], tuple[list[Object], str]]


@dataclass(frozen=True)
class Repository:
    """Where releases are committed: a work tree, or a repository elsewhere; `folder` is below its root."""

    source: str
    folder: str = "edge-release"
    branch: str | None = None

    def __post_init__(self) -> None:
        """Raise CatalogError for a folder outside the repository, or its root."""
        parts = Path(self.folder).parts
        if not parts or Path(self.folder).is_absolute() or {".", "..", ".git"} & set(parts):
            raise CatalogError(
                f"{self.folder!r} is no folder below the repository's root", hint="give --path clusters/shop"
            )

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """Yield the root of a work tree: the user's own, or a clone that is gone afterwards."""
        if git.is_work_tree(self.source):
            yield Path(self.source)
            return
        with tempfile.TemporaryDirectory(prefix="edge-release-") as scratch:
            root = Path(scratch) / "repository"
            git.fetch(self.source, root, self.branch)
            yield root

    @property
    def elsewhere(self) -> bool:
        """Whether commits are pushed: a user's own work tree is the user's to push."""
        return not git.is_work_tree(self.source)


def read(root: Path, repository: Repository) -> list[Object]:
    """Return the objects that are committed, nothing where there are none yet."""
    folder = root / repository.folder
    return base.read(folder) if (folder / KUSTOMIZATION).exists() else []


def changes(before: Sequence[Object], wanted: Sequence[Object]) -> tuple[Change, ...]:
    """Return what a commit would change."""
    return plan(wanted, {key(d): Seen(d, None) for d in before}, before)


def write(root: Path, repository: Repository, documents: Sequence[Object]) -> None:
    """Write objects into the folder, and take away what was there besides."""
    folder = root / repository.folder
    wanted = {_name(d): document_bytes(d) for d in documents}
    listing: Object = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": list(wanted),
    }  # fmt: skip
    wanted[KUSTOMIZATION] = document_bytes(listing)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.yaml"):
        if path.name not in wanted:
            path.unlink()
    for name, data in wanted.items():
        if not (folder / name).exists() or (folder / name).read_bytes() != data:
            files.write(folder / name, data, mode=0o644)


@dataclass(frozen=True)
class Committed:
    """A commit, None where nothing changed; the objects that were there before, and those that are there now."""

    commit: str | None
    before: list[Object]
    after: list[Object]


def commit(repository: Repository, edit: Edit) -> Committed:
    """Commit an edit, and push it where the repository is elsewhere; raises ConflictError where others push as well."""
    for attempt in range(TRIES):
        with repository.opened() as root:
            before = read(root, repository)
            after, told = edit(before)
            write(root, repository, after)
            done = git.commit_folder(root, repository.folder, told)
            try:
                if done and repository.elsewhere:
                    git.push(root)
            except ConflictError:
                if attempt == TRIES - 1:
                    raise
                continue
            return Committed(done, before, after)
    raise AssertionError("the last attempt returns or raises")


def restore(repository: Repository, documents: Sequence[Object], why: str) -> str | None:
    """Commit what was there before a release."""
    return commit(repository, lambda _: (list(documents), f"Roll back\n\n{why}\n")).commit


def message(wanted: Wanted, before: Sequence[Object]) -> str:
    """Return a release's commit message: what is deployed, and instead of what."""
    release = wanted.release.manifest.release
    last = [r for r in listed(before) if r.manifest_sha256 != wanted.release.digest][:1]
    lines = [
        f"Release {release.line} {release.version} ({release.tag})", "", f"manifest sha256:{wanted.release.digest}",
        *(f"instead of {r.version}, manifest sha256:{r.manifest_sha256}" for r in last),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _name(document: Object) -> str:
    return f"{document['kind']}-{document['metadata']['name']}.yaml".lower()
