"""Where the gateway listens, and with which certificates: towards clients and operators."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import output
from pipeline.cli.command import address
from pipeline.errors import CatalogError

if TYPE_CHECKING:
    import socket
    import ssl

    from pipeline.serving.gateway.admin_port import Place

    Used = tuple[Path | None, ssl.SSLContext | None]
else:
    Used = object  # a folder, and the context that holds its certificate


@dataclass(frozen=True)
class Ports:
    """Sockets that listen, the certificate that clients see, and where it and the operators' come from."""

    bound: socket.socket
    clients: ssl.SSLContext | None
    admin: Place | None
    used: tuple[Used, ...]


def add_listening_options(serving: argparse.ArgumentParser) -> None:
    """Add the options that `listening` reads, besides `--tls`."""
    serving.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: %(default)s)"
    )
    serving.add_argument("--port", type=int, default=8088, metavar="N", help="port (default: %(default)s)")
    serving.add_argument(
        "--https", type=Path, metavar="DIR", help="cert.pem and key.pem, shown to clients, who need none of their own"
    )
    serving.add_argument(
        "--admin", type=address, metavar="HOST:PORT",
        help="policy, drain, /status and /metrics: there alone, and for certificates of --tls's authority alone",
    )  # fmt: skip
    serving.add_argument("--insecure", action="store_true", help="take calls from other machines without --https")


def listening(args: argparse.Namespace) -> Ports:
    """Listen where the options say.

    Raises:
        CatalogError: others could call without certificates, or none are there for `--admin`.
        ToolError: a certificate is unusable, or a port taken.
    """
    from pipeline.peers import listen, tls

    clients = tls.public_context(args.https) if args.https else None
    bound = listen.bind(args.host, args.port, tls=clients is not None, insecure=args.insecure, option="--https")
    admin = _admin(args)
    return Ports(bound, clients, admin, ((args.https, clients), (args.tls, admin.context if admin else None)))


def _admin(args: argparse.Namespace) -> Place | None:
    from pipeline.peers import listen
    from pipeline.serving.gateway.admin_port import Place, context

    if args.admin is None:
        return None
    host, port = args.admin
    if args.tls is None:
        raise CatalogError("--admin asks for certificates, and there are none", hint="give --tls DIR too (certs)")
    return Place(listen.bind(host, port, tls=True, insecure=False), context(args.tls))


def announce(args: argparse.Namespace) -> None:
    """Say where to ask."""
    seen = "" if args.admin else ", /status, /metrics"
    output.note(f"gateway: http{'s' if args.https else ''}://{args.host}:{args.port} (/docs{seen})")
    if args.admin:
        host, port = args.admin
        output.note(f"admin: https://{host}:{port} (/admin/policy, /admin/endpoints, /status, /metrics)")


def renewal(*used: Used) -> Callable[[], str | None]:
    """Return what looks at the folders in use again, and says in a line what changed."""
    from pipeline.peers.tls import Reloader

    looks = [(folder, Reloader(folder, [context])) for folder, context in used if folder and context]

    def look() -> str | None:
        said = [f"{folder}: {line}" for folder, reloader in looks if (line := reloader.check())]
        return "; ".join(dict.fromkeys(said)) or None

    return look
