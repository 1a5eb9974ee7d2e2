"""Identities: tokens as GitHub Actions gives them to a run, and their verification by the certificate authority."""

from __future__ import annotations

import time
from typing import Any

import jwt

from tests.support.sigstore.store import Key

GITHUB = "https://token.actions.githubusercontent.com"

Claims = dict[str, str]


def github_claims(
    *,
    repository: str = "acme/edge",
    repository_id: str = "1001",
    workflow: str = "release.yml",
    ref: str = "refs/tags/v1.2.3",
    runner_environment: str = "github-hosted",
) -> Claims:
    """Return what GitHub says of a run of a workflow."""
    owner = repository.partition("/")[0]
    file = f"{repository}/.github/workflows/{workflow}@{ref}"
    return {
        "iss": GITHUB,
        "sub": f"repo:{repository}:ref:{ref}",
        "event_name": "push",
        "sha": "a" * 40,
        "ref": ref,
        "workflow": "release",
        "repository": repository,
        "repository_id": repository_id,
        "repository_owner": owner,
        "repository_owner_id": "2002",
        "repository_visibility": "public",
        "runner_environment": runner_environment,
        "job_workflow_ref": file,
        "job_workflow_sha": "a" * 40,
        "workflow_ref": file,
        "workflow_sha": "a" * 40,
        "run_id": "77",
        "run_attempt": "1",
    }


def token(key: Key, claims: Claims, audience: str = "sigstore", seconds: int = 600) -> str:
    """Return a signed token with these claims."""
    now = int(time.time())
    timed: dict[str, Any] = {"aud": audience, "iat": now, "nbf": now - 1, "exp": now + seconds}
    return jwt.encode({**claims, **timed}, key, "ES256")


def verified(raw: str, key: Key, issuers: list[str]) -> Claims:
    """Return the claims of a token one of the issuers signed; raises jwt.InvalidTokenError for any other."""
    claims: Claims = jwt.decode(raw, key.public_key(), ["ES256"], audience="sigstore", issuer=issuers)
    return claims
