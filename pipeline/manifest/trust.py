"""What a consumer pins: public keys, or a Sigstore root with an identity rule. Never both, never neither."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, model_validator

from pipeline.catalog.document import Document
from pipeline.catalog.names import RunnerClass


class SigstoreTrust(Document):
    """Keyless signers.

    `identity` is a regular expression the certificate's only URI must match whole; where it has a group `tag`, the
    manifest's tag must equal it. `repository_id` survives a rename and a re-used name.
    """

    trusted_root: Annotated[
        str, Field(description="file with a Sigstore trusted root; 'production' for the public instance")
    ]
    identity: Annotated[str, Field(description="regular expression that the certificate's only URI matches whole")]
    issuer: Annotated[str, Field(description="who vouched for the signer")] = (
        "https://token.actions.githubusercontent.com"
    )
    repository_id: Annotated[
        str | None, Field(pattern=r"^\d+$", description="GitHub's number of the repository; none: not asked")
    ] = None
    runner_environment: Annotated[str | None, Field(description="of the job that signed; null: any")] = "github-hosted"

    @model_validator(mode="after")
    def _compiles(self) -> SigstoreTrust:
        try:
            re.compile(self.identity)
        except re.error as e:
            raise ValueError(f"identity is not a regular expression: {e}") from e
        return self


class Trust(Document):
    """`trust.yaml`: exactly one of `public_keys` (PEM, EC P-256) and `sigstore`."""

    line: Annotated[str, Field(description="release line these signers may speak for")]
    public_keys: Annotated[
        list[str], Field(default_factory=list, max_length=16, description="PEM, EC P-256; not beside `sigstore`")
    ]
    sigstore: Annotated[SigstoreTrust | None, Field(description="keyless signers; not beside `public_keys`")] = None
    evidence: Annotated[
        dict[RunnerClass, list[str]],
        Field(
            default_factory=dict, description="keys of machines whose checks count, by runner class; else the signers'"
        ),
    ]

    @model_validator(mode="after")
    def _one_kind(self) -> Trust:
        if bool(self.public_keys) == (self.sigstore is not None):
            raise ValueError("pin exactly one of 'public_keys' and 'sigstore'")
        return self
