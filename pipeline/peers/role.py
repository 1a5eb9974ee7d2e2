"""What the holder of a certificate is: a URI among its subject's alternative names, `edge-release://role/node`.

Rules: a certificate may carry several roles; whoever is connected to accepts those it names, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

PREFIX = "edge-release://role/"


class Role(StrEnum):
    """Who may speak to whom is decided by these."""

    NODE = "node"
    LARGE = "large"
    GATEWAY = "gateway"
    CONTROLLER = "controller"
    CLIENT = "client"

    @property
    def uri(self) -> str:
        return PREFIX + self


def roles(certificate: Mapping[str, Any] | None) -> frozenset[Role]:
    """Return the roles in a peer's certificate, as `ssl` decodes it after it was verified."""
    names = (certificate or {}).get("subjectAltName", ())
    uris = {value for kind, value in names if kind == "URI"}
    return frozenset(role for role in Role if role.uri in uris)
