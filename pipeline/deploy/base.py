"""The documents that a release is rendered into: manifests/k8s, as `kubectl kustomize` reads it.

Rules: what a kustomization lists is read, in its order, and nothing else; a list of resources is all that is followed,
so that the base may be read without kustomize; what it cannot follow is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from pipeline.errors import CatalogError
from pipeline.ports.kube import Object

_KNOWN = {"apiVersion", "kind", "namespace", "resources"}


def load(folder: Path, components: Sequence[str]) -> list[Object]:
    """Return the documents of the base and of components beside it; raises CatalogError."""
    places = [folder / "base", *(folder / "components" / name for name in sorted(components))]
    return [document for place in places for document in read(place)]


def read(place: Path) -> list[Object]:
    """Return the documents that a folder's kustomization lists; raises CatalogError."""
    listing = place / "kustomization.yaml"
    (kustomization,) = _documents(listing) or [{}]
    if unknown := sorted(set(kustomization) - _KNOWN):
        raise CatalogError(
            f"{listing}: {', '.join(unknown)} is not followed here",
            hint="list resources; overlay what is rendered instead",
        )
    return [document for name in kustomization.get("resources", []) for document in _documents(place / name)]


def _documents(path: Path) -> list[Object]:
    try:
        found = [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        said = e.strerror if isinstance(e, OSError) else " ".join(str(e).split())
        raise CatalogError(f"{path}: {said}", hint="give the folder manifests/k8s of this project with --base") from e
    if not all(isinstance(d, dict) and {"apiVersion", "kind"} <= set(d) for d in found):
        raise CatalogError(f"{path}: a document without apiVersion and kind", hint="mend it")
    return found
