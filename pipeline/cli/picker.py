"""The endpoint picker's command."""

from __future__ import annotations

import argparse

from pipeline.cli import output
from pipeline.cli.command import Commands, add, needs
from pipeline.cli.gateway import add_fleet_options, parts


def add_commands(commands: Commands) -> None:
    """Add the endpoint picker's command."""
    picker = add(
        commands,
        "endpoint-picker",
        _picker,
        "decide for Envoy where requests go, as the gateway does (Endpoint Picker Protocol)",
        "endpoint-picker --edge http://pi-1:8080 --edge http://pi-2:8080 --nvlink http://gpu-1:8000",
        "endpoint-picker --config gateway.yaml --channel stable --registry s3://models/releases --trust trust.yaml",
        "endpoint-picker --edge https://pi-1.local:8080 --tls pki/gateway-1 --keys keys.yaml",
    )
    add_fleet_options(picker)
    picker.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: %(default)s, beside Envoy)"
    )
    picker.add_argument("--port", type=int, default=9002, metavar="N", help="gRPC port (default: %(default)s)")
    picker.add_argument(
        "--metrics-port", type=int, default=9090, metavar="N", help="/metrics, /readyz, /healthz (default: %(default)s)"
    )


def _picker(args: argparse.Namespace) -> None:
    with needs("the endpoint picker needs", "envoy"):
        from pipeline.serving.picker import server
        from pipeline.serving.picker.picker import Picker
    picker = Picker(parts(args))
    output.note(
        f"endpoint picker: {args.host}:{args.port} (gRPC), metrics at http://{args.host}:{args.metrics_port}/metrics"
    )
    server.serve(picker, args.host, args.port, args.metrics_port)
