"""Certificates for tests, made by the lab's authority."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipeline.peers.role import Role
from pipeline.serving import certs

HOSTS = ("localhost", "127.0.0.1")


def folder(
    out: Path,
    authority: certs.Pair,
    *roles: Role,
    hosts: Sequence[str] = HOSTS,
    age: timedelta = timedelta(),
) -> Path:
    """Write a certificate's folder, issued some time ago."""
    issued = certs.issue(authority, "test", hosts=hosts, roles=roles, now=datetime.now(UTC) - age)
    certs.write_issued(out, authority, issued, force=True)
    return out


def authority() -> certs.Pair:
    return certs.new_authority(datetime.now(UTC))


def now() -> datetime:
    return datetime.now(UTC)
