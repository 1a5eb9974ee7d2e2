"""Which releases servers may be on: what the deploy job tells gateways while one release takes over from another.

Rules: a release is named by its version and its manifest's digest, so that nothing but that very one is meant; the
first is the newest, by whose vocabulary tokens are counted; whoever reads it verifies each like any other release.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.manifest.encoding import Record, Sha256

MAX_BYTES = 64 << 10
MOST = 8  # releases at once


class Listed(Record):
    """One release."""

    version: Annotated[int, Field(ge=1)]
    manifest_sha256: Sha256


class ReleaseList(Record):
    """The file that `edge-release gateway --releases` reads."""

    schema_version: Literal[1] = 1
    releases: Annotated[list[Listed], Field(min_length=1, max_length=MOST)]
