"""`trust.yaml`: whom a consumer believes, read, applied and, for one's own first key, written.

Rules: pinned keys are brought into one spelling before use; an existing file is never overwritten.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from pipeline.catalog.document import parse_yaml
from pipeline.errors import CatalogError, StageError
from pipeline.manifest import dsse
from pipeline.manifest.trust import Trust
from pipeline.ports import files, sigstore

_TEXT = """\
# Who may sign releases of this line, as pinned by whoever uses them. Made with the first signing key.
line: {line}
public_keys:
  - |
{key}
"""


_KEYLESS_TEXT = """\
# Who may sign releases of this line: runs of one workflow of one repository, for a tag.
# The number is the repository's: it survives a rename, and whoever takes the old name has another.
{document}"""


def load_trust(path: Path) -> Trust:
    """Return a `trust.yaml`.

    Raises:
        CatalogError: it is missing, or not as it must be.
    """
    return files.load(path, lambda text, name: parse_yaml(text, Trust, name))


def opener(trust: Trust, base: Path) -> dsse.Opener:
    """Return what verifies bundles under this trust; relative paths in it start at `base`.

    Raises:
        CatalogError: a pinned key is not EC P-256 in PEM, or the trusted root cannot be read.
    """
    if trust.sigstore is not None:
        return sigstore.opener(trust.sigstore, base)
    return keys_opener(trust.public_keys)


def keys_opener(public_keys: Sequence[str]) -> dsse.Opener:
    """Return what verifies bundles signed by one of these keys; raises CatalogError as `opener`."""
    pems = tuple(_canonical(pem) for pem in public_keys)
    return lambda bundle: dsse.open_with_keys(bundle, pems)


def pin_own_key(path: Path, line: str, public_pem: bytes) -> None:
    """Write a `trust.yaml` that pins one key.

    Raises:
        StageError: there is one already, or it cannot be written.
    """
    key = "".join(f"    {row}\n" for row in public_pem.decode("ascii").splitlines())
    text = _TEXT.format(line=json.dumps(line), key=key.rstrip("\n"))
    if not _create(path, text):
        raise StageError(f"{path} exists and was left as it is", hint="add the key under 'public_keys' by hand")


def keyless_text(line: str, repository: str, repository_id: str, workflow: str, trusted_root: str) -> str:
    """Return a `trust.yaml` for releases that a workflow of a GitHub repository signs in runs for a tag.

    Raises:
        CatalogError: a value is not one that such a file may hold.
    """
    identity = (
        rf"https://github\.com/{re.escape(repository)}/\.github/workflows/{re.escape(workflow)}@refs/tags/(?P<tag>.+)"
    )
    signers = {"trusted_root": trusted_root, "identity": identity, "repository_id": repository_id}
    document = {"line": line, "sigstore": signers}
    text = _KEYLESS_TEXT.format(document=yaml.safe_dump(document, sort_keys=False, width=1000))
    parse_yaml(text, Trust, "trust.yaml")
    return text


def pin_workflow(path: Path, text: str) -> None:
    """Write a `trust.yaml` unless there is the very same already.

    Raises:
        StageError: there is another, or it cannot be written.
    """
    if not _create(path, text) and path.read_text(encoding="utf-8") != text:
        raise StageError(f"{path} exists, pins others and was left as it is", hint="compare, and remove it by hand")


def _create(path: Path, text: str) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return files.create(path, text.encode())
    except OSError as e:
        raise StageError(f"cannot write {path}: {e.strerror}", hint="free space or choose another folder") from e


def _canonical(pem: str) -> bytes:
    hint = "pin the contents of a signing.pub"
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as e:
        raise CatalogError("public_keys: an entry is not a public key in PEM", hint=hint) from e
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CatalogError("public_keys: an entry is not an EC P-256 key", hint=hint)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
