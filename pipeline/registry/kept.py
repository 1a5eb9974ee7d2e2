"""What the kept versions of a folder hold.

Rules: a version's record only says where to look; whatever is used of its files is checked again.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import TrustError
from pipeline.manifest import dsse, oms, statement
from pipeline.manifest.evidence import File
from pipeline.registry import activate, beneath, headers, layout, record, tree
from pipeline.registry.verify import held_variant


def paths(versions: int, wanted: Sequence[File]) -> dict[str, str]:
    """Return where wanted files lie below the folder of versions, by digest; each was checked again."""
    found: dict[str, str] = {}
    for version in activate.kept(versions):
        there = {f.sha256: f"{version}/{f.name}" for f in _listed(versions, version)}
        for f in wanted:
            path = there.get(f.sha256)
            if path and f.sha256 not in found and tree.holds(versions, f.model_copy(update={"name": path})):
                found[f.sha256] = path
    return found


def models(versions: int) -> list[str]:
    """Return where model files lie below the folder of versions, newest version first."""
    there = ((version, f.name) for version in activate.kept(versions) for f in _listed(versions, version))
    return [f"{version}/{name}" for version, name in there if headers.has_header(name)]


def read(folder: int, name: str) -> bytes:
    """Return one of a version's statements, within bounds; raises TrustError and OSError."""
    with beneath.file(folder, name) as f:
        return f.read(layout.MAX_RECORD)


def _listed(versions: int, version: str) -> list[File]:
    try:
        with beneath.folder(versions, version) as folder:
            bundles = record.decode(read(folder, record.FILE))
            signature = read(folder, oms.SIGNATURE_FILE)
        manifest = statement.parse(dsse.unverified_payload(bundles.manifest))
        return held_variant(manifest, bundles, signature).files
    except (TrustError, OSError, ValueError, KeyError, TypeError):
        return []
