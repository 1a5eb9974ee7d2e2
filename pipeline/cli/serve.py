"""The commands that serve a release: `node`."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable
from pathlib import Path

from pipeline.catalog.names import Channel, RunnerClass, Tier, Variant, host_target
from pipeline.cli import output
from pipeline.cli.access import Access, add_evidence_option, add_registry_option, add_trust_options
from pipeline.cli.command import Commands, add
from pipeline.errors import CatalogError, ToolError
from pipeline.manifest import proof
from pipeline.manifest.rules import Accepted

PORT = 8080


def add_commands(commands: Commands) -> None:
    """Add the commands that serve."""
    node = add(
        commands,
        "node",
        _node,
        "serve this machine's variant of a channel's release, proven and kept current",
        "node --registry s3://models/releases --trust trust.yaml",
        "node --channel stable --tls pki/pi-1",
        "node --variant mid-tier-arm64 --slots 2 --context 2048",
        "node --host 0.0.0.0 --insecure",
    )
    add_registry_option(node)
    add_trust_options(node)
    node.add_argument(
        "--channel", type=Channel, choices=list(Channel), default=Channel.DEV, metavar="NAME",
        help=f"{', '.join(Channel)} (default: dev)",
    )  # fmt: skip
    add_evidence_option(node)
    node.add_argument("--variant", metavar="VARIANT", help="default: tiny-edge for this machine")
    node.add_argument(
        "--home", type=Path, metavar="DIR", help="where releases are kept (default: ~/.local/share/edge-release/node)"
    )
    node.add_argument(
        "--state", type=Path, metavar="FILE", help="what was seen before (default: ~/.local/state/edge-release)"
    )
    node.add_argument("--name", metavar="NAME", help="what it calls itself (default: this machine's name)")
    _add_network(node)
    _add_size(node)


def _add_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument("--host", metavar="ADDRESS", help="default: every address with --tls, else 127.0.0.1")
    group.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}")
    group.add_argument(
        "--tls", type=Path, metavar="DIR", help="ca.pem, cert.pem and key.pem: only gateways and controllers may call"
    )
    group.add_argument("--insecure", action="store_true", help="take calls from other machines without certificates")


def _add_size(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("size (default: from the manifest's measurements and this machine)")
    group.add_argument("--slots", type=int, metavar="N", help="requests decoded at once")
    group.add_argument("--context", type=int, metavar="TOKENS", help="tokens of each slot")
    group.add_argument("--threads", type=int, metavar="N", help="threads that decode")
    group.add_argument("--poll", type=float, default=30.0, metavar="SECONDS", help="between looks at the channel (30)")
    group.add_argument(
        "--drain",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="for open requests when a server is replaced (120)",
    )


def _node(args: argparse.Namespace) -> None:
    try:
        from pipeline.serving.node import listen
        from pipeline.serving.node.releases import ChannelReleases
        from pipeline.serving.node.run import Options, run
        from pipeline.serving.node.sizing import Asked
        from pipeline.serving.node.state import Policy
    except ImportError as e:
        raise ToolError(f"what serves is not installed: {e.name}", hint="pip install 'edge-release[serve]'") from e
    access = Access(args)
    variant = _variant(args.variant)
    try:
        asked = Asked(args.slots, args.context, args.threads)
    except ValueError as e:
        raise CatalogError(str(e), hint="leave them out to have them computed") from e
    releases = ChannelReleases(
        access.store, access.opener, access.line, args.channel, variant.name, args.home or _home(), access.state,
        proof=_proof(access, variant.name),
    )  # fmt: skip
    host = args.host or (listen.ANYWHERE if args.tls else listen.LOOPBACK)
    bound = listen.bind(host, args.port, tls=args.tls is not None, insecure=args.insecure)
    policy = Policy(poll_s=args.poll, drain_s=args.drain)
    run(Options(args.name or socket.gethostname(), bound, args.tls, policy, asked), releases, output.note)


def _variant(name: str | None) -> Variant:
    if name is None:
        here = host_target()
        if here is None:
            raise CatalogError("this machine is none of the targets", hint="give --variant")
        return Variant(Tier.TINY_EDGE, here)
    try:
        found = Variant.parse(name)
    except ValueError as e:
        raise CatalogError(str(e), hint="choose one of them") from e
    if found.tier is Tier.LARGE:
        raise CatalogError(f"{name} is no GGUF variant", hint="a node serves tiny-edge and mid-tier variants")
    return found


def _proof(access: Access, variant: str) -> Callable[[Accepted], None]:
    def prove(accepted: Accepted) -> None:
        for runner in access.args.require_evidence:
            proof.require(accepted.manifest, RunnerClass(runner), access.evidence_opener(runner), variant)

    return prove


def _home() -> Path:
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "edge-release" / "node"
