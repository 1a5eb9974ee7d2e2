"""OpenSSF Model Signing: the statement in a variant folder's `model.sig`, built from digests already known.

Source: OMS specification v1.0 (https://github.com/ossf/model-signing-spec), as written by model-signing 1.1.

Rules: resources are sorted by the parts of their names (`a/y` before `a-b/x`), the subject is the digest over their
digests in that order; of our own files only the signature and the release's record beside it are ignored.
"""

from __future__ import annotations

import hashlib

from pydantic import Field

from pipeline.errors import Refusal, TrustError
from pipeline.manifest.encoding import Record, Sha256, canonical, decode
from pipeline.manifest.evidence import File

SIGNATURE_FILE = "model.sig"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
IGNORED = ["model.sig", "release.json", ".git", ".gitattributes", ".github", ".gitignore"]


class _Resource(Record):
    name: str
    algorithm: str
    digest: Sha256


class _Predicate(Record):
    resources: list[_Resource]


class _Statement(Record):
    predicate_type: str = Field(alias="predicateType")
    predicate: _Predicate


def statement(variant: str, files: list[File]) -> bytes:
    """Return the OMS statement over a variant folder's files."""
    ordered = sorted(files, key=lambda f: f.name.split("/"))
    root = hashlib.sha256(b"".join(bytes.fromhex(f.sha256) for f in ordered)).hexdigest()
    return canonical(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": variant, "digest": {"sha256": root}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "serialization": {
                    "method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": IGNORED,
                },
                "resources": [{"name": f.name, "algorithm": "sha256", "digest": f.sha256} for f in ordered],
            },
        }
    )  # fmt: skip


def check_covers(payload: bytes, variant: str, files: list[File]) -> None:
    """Raise TrustError MIXED unless a verified OMS payload speaks of exactly these files."""
    signed = decode(payload, _Statement, f"{variant}/{SIGNATURE_FILE}")
    resources = sorted((r.name, r.algorithm, r.digest) for r in signed.predicate.resources)
    if signed.predicate_type != PREDICATE_TYPE or resources != sorted((f.name, "sha256", f.sha256) for f in files):
        raise TrustError(Refusal.MIXED, f"{variant}/{SIGNATURE_FILE} and the manifest speak of different files")
