"""A release's record: all its signed statements in one object, so that a release appears whole or not at all.

Rules: a statement that is missing comes out empty, which no opener accepts; whatever else is wrong is malformed.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.errors import Refusal, TrustError
from pipeline.manifest.encoding import canonical
from pipeline.manifest.rules import Bundles
from pipeline.registry import layout

FILE = "release.json"


def encode(bundles: Bundles) -> bytes:
    """Return the record of a release's bundles.

    Raises:
        TrustError: MALFORMED (a bundle is not JSON) or OVERSIZED.
    """
    statements = {"manifest": _read(bundles.manifest), "provenance": _read(bundles.provenance)}
    data = canonical({**statements, "variants": {name: _read(b) for name, b in bundles.variants.items()}})
    if len(data) > layout.MAX_RECORD:
        raise TrustError(
            Refusal.OVERSIZED,
            f"the release's statements have {len(data)} bytes, at most {layout.MAX_RECORD} are read",
            hint="release fewer files or less evidence at once",
        )
    return data


def decode(data: bytes) -> Bundles:
    """Return the bundles in an untrusted record; raises TrustError MALFORMED."""
    document = _read(data)
    variants = document.get("variants") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(variants, dict):
        raise TrustError(Refusal.MALFORMED, "a release's record is not as it must be")
    return Bundles(
        manifest=_bundle(document.get("manifest")),
        provenance=_bundle(document.get("provenance")),
        variants={name: _bundle(value) for name, value in variants.items()},
    )


def normal(bundle: bytes) -> bytes:
    """Return a bundle as a record gives it back; raises TrustError MALFORMED."""
    return _bundle(_read(bundle))


def _bundle(value: Any) -> bytes:
    return canonical(value) if value else b""


def _read(data: bytes) -> Any:
    try:
        value = json.loads(data) if data else None
        canonical(value)
    except (ValueError, RecursionError) as e:
        raise TrustError(Refusal.MALFORMED, f"a release's record is not JSON: {type(e).__name__}") from e
    return value
