"""The commands that serve a release: `node` a GGUF variant, `serve-large` the large tier."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.catalog.names import Channel, RunnerClass, Tier, Variant, host_target
from pipeline.cli import output
from pipeline.cli.access import Access, add_evidence_option, add_registry_option, add_trust_options
from pipeline.cli.command import Commands, add, address, needs
from pipeline.errors import CatalogError
from pipeline.manifest import proof
from pipeline.manifest.rules import Accepted

if TYPE_CHECKING:
    from pipeline.serving.node.backend import Backend
    from pipeline.serving.node.sizing import Asked

PORT, LARGE_PORT = 8080, 8000
MISSING = "what serves is not installed:"


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
        "node --release 7 --tls pki/pi-1 --health 0.0.0.0:8081",
    )
    _add_common(node, "node", "tiny-edge for this machine", PORT)
    large = add(
        commands,
        "serve-large",
        _large,
        "serve the large tier of a channel's release over this machine's GPUs, proven and kept current",
        "serve-large --registry s3://models/releases --trust trust.yaml",
        "serve-large --channel stable --require-evidence nvlink --tls pki/gpu-1",
        "serve-large --engine transformers --slots 4 --context 2048",
    )
    _add_common(large, "large", "large for this machine", LARGE_PORT)
    large.add_argument(
        "--engine", choices=["auto", "vllm", "transformers"], default="auto",
        help="auto: vLLM where it is installed, else transformers' continuous batching (default)",
    )  # fmt: skip


def _add_common(serving: argparse.ArgumentParser, place: str, variant: str, port: int) -> None:
    add_registry_option(serving)
    add_trust_options(serving)
    which = serving.add_mutually_exclusive_group()
    which.add_argument(
        "--channel", type=Channel, choices=list(Channel), default=Channel.DEV, metavar="NAME",
        help=f"{', '.join(Channel)} (default: dev)",
    )  # fmt: skip
    which.add_argument("--release", type=int, metavar="VERSION", help="this release, instead of following a channel")
    serving.add_argument(
        "--manifest", metavar="SHA256", help="of --release: its manifest, which may then be older than one seen before"
    )
    add_evidence_option(serving)
    serving.add_argument("--variant", metavar="VARIANT", help=f"default: {variant}")
    serving.add_argument(
        "--home", type=Path, metavar="DIR",
        help=f"where releases are kept (default: ~/.local/share/edge-release/{place})",
    )  # fmt: skip
    serving.add_argument(
        "--state", type=Path, metavar="FILE", help="what was seen before (default: ~/.local/state/edge-release)"
    )
    serving.add_argument("--name", metavar="NAME", help="what it calls itself (default: this machine's name)")
    _add_network(serving, port)
    _add_size(serving)


def _add_network(parser: argparse.ArgumentParser, port: int) -> None:
    group = parser.add_argument_group("network")
    group.add_argument("--host", metavar="ADDRESS", help="default: every address with --tls, else 127.0.0.1")
    group.add_argument("--port", type=int, default=port, help=f"default: {port}")
    group.add_argument(
        "--tls", type=Path, metavar="DIR", help="ca.pem, cert.pem and key.pem: only gateways and controllers may call"
    )
    group.add_argument(
        "--health", type=address, metavar="HOST:PORT", help="/healthz and /readyz there too, without certificates"
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
    variant = _variant(args.variant, Tier.TINY_EDGE)
    if variant.tier is Tier.LARGE:
        raise CatalogError(f"{variant} is no GGUF variant", hint="edge-release serve-large serves it")
    with needs(MISSING, "serve"):
        from pipeline.serving.node.llama import LlamaServer
    _run(args, variant, "node", LlamaServer(_asked(args)))


def _large(args: argparse.Namespace) -> None:
    variant = _variant(args.variant, Tier.LARGE)
    if variant.tier is not Tier.LARGE:
        raise CatalogError(f"{variant} is not of the large tier", hint="edge-release node serves it")
    with needs(MISSING, "serve,build"):
        from pipeline.serving.large.backend import Kind, Ranks, installed
    kind = installed() if args.engine == "auto" else Kind(args.engine)
    output.note(f"engine: {kind}")
    _run(args, variant, "large", Ranks(kind, _asked(args), _home(args, "large")))


def _run(args: argparse.Namespace, variant: Variant, place: str, backend: Backend) -> None:
    from pipeline.peers import listen
    from pipeline.serving.node.releases import ChannelReleases, Wanted
    from pipeline.serving.node.run import Options, run
    from pipeline.serving.node.state import Policy

    access = Access(args)
    if args.manifest and args.release is None:
        raise CatalogError("--manifest says which manifest a release has", hint="give --release VERSION too")
    wanted = None if args.release is None else Wanted(args.release, args.manifest)
    releases = ChannelReleases(
        access.store, access.opener, access.line, args.channel, variant.name, _home(args, place), access.state,
        proof=_proof(access, variant.name), wanted=wanted, say=output.note,
    )  # fmt: skip
    host = args.host or (listen.ANYWHERE if args.tls else listen.LOOPBACK)
    bound = listen.bind(host, args.port, tls=args.tls is not None, insecure=args.insecure)
    health = listen.bind(*args.health, tls=False, insecure=True) if args.health else None
    policy = Policy(poll_s=args.poll, drain_s=args.drain)
    run(Options(args.name or socket.gethostname(), bound, args.tls, policy, backend, health), releases, output.note)


def _asked(args: argparse.Namespace) -> Asked:
    with needs(MISSING, "serve"):
        from pipeline.serving.node.sizing import Asked
    try:
        return Asked(args.slots, args.context, args.threads)
    except ValueError as e:
        raise CatalogError(str(e), hint="leave them out to have them computed") from e


def _variant(name: str | None, tier: Tier) -> Variant:
    if name is None:
        here = host_target()
        if here is None:
            raise CatalogError("this machine is none of the targets", hint="give --variant")
        return Variant(tier, here)
    try:
        return Variant.parse(name)
    except ValueError as e:
        raise CatalogError(str(e), hint="choose one of them") from e


def _proof(access: Access, variant: str) -> Callable[[Accepted], None]:
    def prove(accepted: Accepted) -> None:
        for runner in access.args.require_evidence:
            proof.require(accepted.manifest, RunnerClass(runner), access.evidence_opener(runner), variant)

    return prove


def _home(args: argparse.Namespace, place: str) -> Path:
    if args.home:
        return Path(args.home)
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "edge-release" / place
