"""Sign a built release: one bundle for the manifest, one for the provenance, one OMS bundle for each variant.

Rules: what is already signed, and verifies, over the same bytes is kept, because signatures are not repeatable; the
result is the very record that is published, with each variant's folder as it will be pulled beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import TrustError
from pipeline.manifest import oms, provenance, statement
from pipeline.manifest.dsse import Opener
from pipeline.manifest.rules import Bundles
from pipeline.ports import files
from pipeline.ports.keys import Signer
from pipeline.registry import record


def sign(manifest_payload: bytes, provenance_payload: bytes, signer: Signer) -> Bundles:
    """Return the signed statements of a release; raises TrustError where the statements do not belong together."""
    manifest = statement.parse(manifest_payload)
    provenance.check_covers(provenance_payload, manifest)
    return Bundles(
        manifest=signer(manifest_payload),
        provenance=signer(provenance_payload),
        variants={e.name: signer(oms.statement(e.name, e.files)) for e in manifest.entries},
    )


def already(folder: Path, manifest_payload: bytes, provenance_payload: bytes, opener: Opener) -> Bundles | None:
    """Return the bundles in `folder` if trusted signers signed exactly these statements, else None."""
    try:
        bundles = record.decode((folder / record.FILE).read_bytes())
        same = (
            opener(bundles.manifest).payload == manifest_payload
            and opener(bundles.provenance).payload == provenance_payload
        )
        for entry in statement.parse(manifest_payload).entries:
            oms.check_covers(opener(bundles.variants[entry.name]).payload, entry.name, entry.files)
    except (OSError, KeyError, TrustError):
        return None  # whatever is wrong with the old signatures, new ones mend it
    return bundles if same else None


def write(folder: Path, bundles: Bundles, released: Mapping[str, Path]) -> None:
    """Write the record, and every variant's folder with its `model.sig`, whole or not at all.

    Args:
        released: subject name, `<variant>/<file>`, to where the file lies; linked where the file system can.
    """
    with files.new_folder(folder) as out:
        for name, source in released.items():
            files.put(source, out / name)
        for variant, bundle in bundles.variants.items():
            (out / variant / oms.SIGNATURE_FILE).write_bytes(record.normal(bundle))
        (out / record.FILE).write_bytes(record.encode(bundles))
