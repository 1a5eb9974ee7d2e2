"""The node's systemd unit is one systemd accepts, confines it, and is the one the page installs."""

from __future__ import annotations

import shlex
import shutil
from collections import defaultdict
from pathlib import Path

import pytest

from pipeline.cli import parser
from pipeline.ports import process

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "manifests" / "systemd" / "edge-release-node.service"


def options() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for line in UNIT.read_text().replace("\\\n", "").splitlines():
        name, sign, value = line.partition("=")
        if sign and not line.startswith("#"):
            found[name].append(value)
    return found


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (package systemd)")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """systemd reads the unit without a complaint; the program it starts need not be installed here."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/edge-release/bin/edge-release", "/bin/true"))
    assert process.run(["systemd-analyze", "verify", unit], hint="") == ""


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("User", ["edge-node"]),
        ("NoNewPrivileges", ["yes"]),
        ("CapabilityBoundingSet", [""]),
        ("ProtectSystem", ["strict"]),
        ("ProtectHome", ["yes"]),
        ("RestrictNamespaces", ["yes"]),
        ("SystemCallFilter", ["@system-service", "~@privileged"]),
        ("DeviceAllow", ["/dev/vcio rw"]),
        ("SupplementaryGroups", ["video"]),
        ("Restart", ["always"]),
        ("KillMode", ["mixed"]),
    ],
)
def test_the_unit_confines_the_node(option: str, values: list[str]) -> None:
    """What the page promises is set."""
    assert options()[option] == values


def test_what_it_starts_is_a_command_of_ours() -> None:
    """The command line parses, and open requests have longer to finish than systemd waits before it kills."""
    (start,) = options()["ExecStart"]
    program, *arguments = shlex.split(start.replace("$NODE_OPTIONS", "--channel stable --tls /etc/tls"))
    assert program == "/opt/edge-release/bin/edge-release"
    args = parser().parse_args(arguments)
    assert (str(args.state), args.channel) == ("%S/edge-release-node/seen.json", "stable")
    assert args.drain + 10 < int(options()["TimeoutStopSec"][0].removesuffix("s"))


def test_the_page_speaks_of_this_unit() -> None:
    """The page installs the unit from where it lies, for its user and its files."""
    page = (ROOT / "docs" / "node.md").read_text()
    for named in (str(UNIT.relative_to(ROOT)), "edge-node", "/etc/edge-release-node/node.env", "trust.yaml"):
        assert named in page
