"""The gateway's commands: serve, and make API keys."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.catalog.names import Channel
from pipeline.cli import output
from pipeline.cli.access import Access, add_registry_option, add_trust_options
from pipeline.cli.command import Commands, add, needs
from pipeline.cli.listening import Used, add_listening_options, announce, listening, renewal
from pipeline.serving.decision import Priority

if TYPE_CHECKING:
    from pipeline.serving.gateway.release import Source
    from pipeline.serving.gateway.settings import Settings
    from pipeline.serving.gateway.tracing import Tracing
    from pipeline.serving.gateway.watcher import Parts


def add_commands(commands: Commands) -> None:
    """Add the gateway's commands."""
    serving = add(
        commands,
        "gateway",
        _gateway,
        "serve OpenAI's API from edge nodes and the NVLink pool, edge first, verified releases only",
        "gateway --edge http://pi-1:8080 --edge http://pi-2:8080 --nvlink http://gpu-1:8000",
        "gateway --config gateway.yaml --channel stable --registry s3://models/releases --trust trust.yaml",
        "gateway --config gateway.yaml --keys keys.yaml --host 0.0.0.0 --https pki/gateway-1",
        "gateway --edge https://pi-1.local:8080 --tls pki/gateway-1 --admin 0.0.0.0:8089",
        "gateway --config gateway.yaml --otlp http://collector:4318/v1/traces",
    )
    add_fleet_options(serving)
    add_listening_options(serving)
    serving.add_argument("--otlp", metavar="URL", help="send traces there (OTLP over HTTP, e.g. …:4318/v1/traces)")
    serving.add_argument(
        "--trace-share", type=float, default=0.01, metavar="SHARE", help="of requests traced (default: %(default)s)"
    )
    key = add(
        commands,
        "gateway-key",
        _key,
        "make an API key for the gateway, print it once, and keep its hash",
        "gateway-key shop-floor --keys keys.yaml",
        "gateway-key nightly --keys keys.yaml --priority batch --rate 60",
    )
    key.add_argument("name", metavar="NAME", help="who gets it; shown in logs")
    key.add_argument("--keys", type=Path, required=True, metavar="FILE", help="made where it is missing")
    key.add_argument("--priority", type=Priority, choices=list(Priority), default=Priority.INTERACTIVE, metavar="CLASS")
    key.add_argument("--rate", type=float, metavar="N", help="requests a minute (default: no limit)")


def add_fleet_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which servers there are, which release they may serve, and who may ask."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="endpoints, policy and limits (docs/gateway.md)")
    parser.add_argument("--edge", action="append", default=[], metavar="URL", help="an edge node; repeatable")
    parser.add_argument("--nvlink", action="append", default=[], metavar="URL", help="a large server; repeatable")
    parser.add_argument(
        "--tls", type=Path, metavar="DIR", help="ca.pem, cert.pem and key.pem, shown to nodes and large servers (certs)"
    )
    parser.add_argument("--keys", type=Path, metavar="FILE", help="API keys; without it everyone may ask")
    parser.add_argument("--quiet", action="store_true", help="no line on standard output for each request")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--channel", type=Channel, choices=list(Channel), default=Channel.DEV, metavar="NAME")
    which.add_argument(
        "--releases", type=Path, metavar="FILE", help="a list of the releases that servers may be on (deploy writes it)"
    )
    parser.add_argument("--state", type=Path, metavar="FILE", help="what was seen before, and beside it FILE.gateway/")
    add_registry_option(parser)
    add_trust_options(parser)


def _gateway(args: argparse.Namespace) -> None:
    with needs("the gateway needs", "serve"):
        from pipeline.serving.gateway import server
        from pipeline.serving.gateway.admin_port import AdminPort
        from pipeline.serving.gateway.app import App
        from pipeline.serving.gateway.gateway import Gateway
    ports = listening(args)
    gateway = Gateway(parts(args, *ports.used), tracing=_tracing(args))
    app = App(gateway, apart=ports.admin is not None)
    admin = AdminPort(gateway, app, ports.admin) if ports.admin else None
    announce(args)
    server.serve(app, gateway, ports.bound, ports.clients, admin)


def parts(args: argparse.Namespace, *used: Used) -> Parts:
    """Return what the options of `add_fleet_options` say; certificates that are `used` besides are renewed too."""
    import random
    import time

    from pipeline.peers import tls
    from pipeline.peers.role import Role
    from pipeline.serving.gateway.callers import Callers
    from pipeline.serving.gateway.watcher import Parts

    callers = Callers(args.keys, time.monotonic)
    callers.reload()
    context = tls.client_context(args.tls, [Role.NODE, Role.LARGE]) if args.tls else None
    return Parts(
        settings=_settings(args),
        source=_source(args),
        callers=callers,
        write=(lambda _: None) if args.quiet else sys.stdout.buffer.write,
        flush=sys.stdout.buffer.flush,
        clock=time.monotonic,
        new_id=lambda: f"{random.getrandbits(96):024x}",
        tls=context,
        renew=renewal((args.tls, context), *used),
    )


def _settings(args: argparse.Namespace) -> Settings:
    from pipeline.ports import files
    from pipeline.serving.gateway.settings import Settings, parse_settings, with_endpoints

    found = files.load(args.config, parse_settings) if args.config else Settings()
    return with_endpoints(found, args.edge, args.nvlink)


def _source(args: argparse.Namespace) -> Source:
    from pipeline.serving.gateway.release import Source

    access = Access(args)
    return Source(
        store=lambda: access.store,
        opener=access.opener,
        line=access.line,
        channel=args.channel,
        seen=access.state,
        folder=access.state.with_name(f"{access.state.name}.gateway"),
        listed=args.releases,
    )


def _tracing(args: argparse.Namespace) -> Tracing:
    from pipeline.serving.gateway import tracing

    return tracing.otlp(args.otlp, args.trace_share) if args.otlp else tracing.Off()


def _key(args: argparse.Namespace) -> None:
    from pipeline.serving.gateway.callers import add_key

    output.say(add_key(args.keys, args.name, priority=args.priority, rate=args.rate))
    output.note(f"keep it: {args.keys} holds its hash alone")
