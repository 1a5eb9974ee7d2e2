"""From flags, environment and params.yaml to a registry, trust, state and a signer.

Rules: a flag beats the environment, the environment beats params.yaml; outside a project a release line is known from
its trust file. Nothing here writes, but the first key and its pin.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.catalog.names import Channel, RunnerClass
from pipeline.cli import output
from pipeline.errors import CatalogError
from pipeline.manifest.dsse import Opener
from pipeline.manifest.trust import Trust
from pipeline.ports import keys
from pipeline.ports import trust as trust_port
from pipeline.ports.keys import Signer
from pipeline.registry import state
from pipeline.registry.store import Store, open_store
from pipeline.stages.project import Project

REGISTRY_VARIABLE = "EDGE_RELEASE_REGISTRY"
SIGSTORE_VARIABLE = "EDGE_RELEASE_SIGSTORE_CONFIG"


def add_registry_option(parser: argparse.ArgumentParser) -> None:
    """Add --registry."""
    parser.add_argument(
        "--registry",
        metavar="URL",
        help=f"folder or s3://bucket/prefix (default: {REGISTRY_VARIABLE}, else params.yaml)",
    )


def add_trust_options(parser: argparse.ArgumentParser) -> None:
    """Add --line and --trust."""
    parser.add_argument("--line", metavar="NAME", help="release line (default: params.yaml, else the only one trusted)")
    parser.add_argument(
        "--trust", type=Path, metavar="FILE", help="pinned signers (default: ~/.config/edge-release/trust/LINE.yaml)"
    )


def add_signer_option(parser: argparse.ArgumentParser) -> None:
    """Add --signer."""
    parser.add_argument(
        "--signer",
        choices=["auto", "key", "keyless"],
        default="auto",
        help="auto (default): keyless in GitHub Actions, else the key in ~/.config/edge-release",
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON; errors too, on standard error")


def add_consumer_options(parser: argparse.ArgumentParser) -> None:
    """Add what every verb needs that reads a release."""
    add_registry_option(parser)
    add_trust_options(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--channel", type=Channel, choices=list(Channel), metavar="NAME", help=f"{', '.join(Channel)} (default: dev)"
    )
    which.add_argument("--release", type=int, metavar="VERSION", help="a release by its version instead of a channel")
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="what was seen before (default: ~/.local/state/edge-release)"
    )
    parser.add_argument("--allow-rollback", action="store_true", help="accept a release older than one seen before")
    add_json_option(parser)


def add_evidence_option(parser: argparse.ArgumentParser) -> None:
    """Add --require-evidence."""
    parser.add_argument(
        "--require-evidence",
        type=RunnerClass,
        choices=list(RunnerClass),
        action="append",
        default=[],
        metavar="CLASS",
        help=f"refuse what has no passing signed evidence from this runner class: {', '.join(RunnerClass)}",
    )


@dataclass(frozen=True)
class Access:
    """What one command's flags lead to."""

    args: argparse.Namespace

    @cached_property
    def project(self) -> Project | None:
        """The project this runs in, if any."""
        return Project.load() if Path("params.yaml").exists() else None

    @cached_property
    def registry(self) -> str:
        """The registry's address; a folder of params.yaml starts at the project."""
        given = self.args.registry or os.environ.get(REGISTRY_VARIABLE)
        if given:
            return str(given)
        if self.project is None:
            raise CatalogError("no registry is named", hint=f"give --registry, or set {REGISTRY_VARIABLE}")
        return self.project.params.release.registry

    @cached_property
    def store(self) -> Store:
        return open_store(self.registry)

    @cached_property
    def line(self) -> str:
        """The release line."""
        if getattr(self.args, "line", None):
            return str(self.args.line)
        if getattr(self.args, "trust", None):
            return self._trust[0].line
        if self.project is not None:
            return self.project.params.release.line
        trusted = sorted(path.stem for path in trust_folder().glob("*.yaml"))
        if len(trusted) != 1:
            known = ", ".join(trusted) or "none"
            raise CatalogError(f"which release line? trusted here: {known}", hint="give --line, or --trust FILE")
        return trusted[0]

    @cached_property
    def opener(self) -> Opener:
        """What verifies signatures, by the pinned trust."""
        pinned, base = self._trust
        if pinned.line != self.line:
            raise CatalogError(
                f"the trust file is for line {pinned.line}, not {self.line}", hint="pin the signers of this line"
            )
        return trust_port.opener(pinned, base)

    def evidence_opener(self, runner: RunnerClass) -> Opener:
        """What verifies signed evidence: the keys pinned for the runner class, else whoever may sign the release."""
        pinned = self._trust[0].evidence.get(runner)
        return trust_port.keys_opener(pinned) if pinned else self.opener

    @cached_property
    def _trust(self) -> tuple[Trust, Path]:
        given = getattr(self.args, "trust", None)
        path = Path(given) if given else trust_file(self.line)
        if not path.exists():
            raise CatalogError(
                f"{path}: nobody is trusted for this line yet",
                hint="copy the publisher's trust file there, or give --trust FILE (`sign` pins its own key)",
            )
        return trust_port.load_trust(path), path.resolve().parent

    @property
    def state(self) -> Path:
        """Where is kept what was seen: for each line and registry of its own, out of any registry's reach."""
        if self.args.state:
            return Path(self.args.state)
        place = self.store.url if "://" in self.store.url else str(Path(self.store.url).resolve())
        where = hashlib.sha256(place.encode()).hexdigest()[:12]
        return state.default_path(f"{self.line}@{where}")

    @cached_property
    def signer(self) -> Signer:
        """Who signs: the workflow in GitHub Actions (keyless), this user's key elsewhere."""
        if getattr(self.args, "signer", None) == "keyless" or (
            getattr(self.args, "signer", None) in {None, "auto"} and os.environ.get("GITHUB_ACTIONS") == "true"
        ):
            from pipeline.ports import sigstore

            config = os.environ.get(SIGSTORE_VARIABLE)
            return sigstore.signer(Path(config) if config else None)
        return self._own_key()

    def _own_key(self) -> Signer:
        folder = keys.config_folder()
        first = not (folder / keys.PRIVATE_FILE).exists()
        pair = keys.load_or_create(folder)
        if first:
            output.note(f"made a signing key, {folder / keys.PRIVATE_FILE}; keep it secret, and keep a copy")
        pin = trust_file(self.line)
        if not getattr(self.args, "trust", None) and not pin.exists():
            trust_port.pin_own_key(pin, self.line, pair.public_pem)
            output.note(f"pinned its public key for {self.line} in {pin}; give that file to whoever consumes releases")
        return keys.signer(pair)


def trust_folder() -> Path:
    """Return the folder of this user's trust files, one a line."""
    return keys.config_folder() / "trust"


def trust_file(line: str) -> Path:
    """Return this user's trust file of a line."""
    return trust_folder() / f"{line}.yaml"
