"""The shipped systemd unit is one systemd accepts, and keeps a job away from the rest of the machine."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

import pytest

from pipeline.ports import process

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "manifests" / "runner" / "edge-release-runner.service"


def options() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        name, sign, value = line.partition("=")
        if sign and not line.startswith("#"):
            found[name].append(value)
    return found


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (package systemd)")
def test_systemd_accepts_the_unit() -> None:
    """systemd reads the unit without a complaint."""
    assert process.run(["systemd-analyze", "verify", UNIT], hint="") == ""


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("User", "edge-runner"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("ProtectKernelModules", "yes"),
        ("RestrictNamespaces", "yes"),
        ("RestrictSUIDSGID", "yes"),
        ("SystemCallFilter", "@system-service"),
        ("DevicePolicy", "closed"),
        ("UMask", "0077"),
        ("Restart", "no"),
    ],
)
def test_the_unit_confines_the_job(option: str, value: str) -> None:
    """What the documentation promises of the sandbox is set, once."""
    assert options()[option] == [value]


def test_the_job_finds_what_evidence_needs() -> None:
    """The firmware and the GPUs can be used, and nothing hides /proc/cpuinfo."""
    found = options()
    assert found["DeviceAllow"] == ["/dev/vcio rw", "char-nvidia* rw"]
    assert found["SupplementaryGroups"] == ["video"]
    assert not {"ProcSubset", "PrivateDevices"} & set(found)


def test_the_page_speaks_of_this_unit() -> None:
    """The page installs the unit from where it lies, for its user and its files."""
    page = (ROOT / "docs" / "runners.md").read_text()
    for named in (
        str(UNIT.relative_to(ROOT)),
        "edge-runner",
        "/run/edge-release-runner.env",
        "/etc/edge-release-runner",
    ):
        assert named in page
