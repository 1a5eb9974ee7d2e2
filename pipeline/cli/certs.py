"""The command `certs`: a certificate authority for labs."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from pipeline.cli import output
from pipeline.cli.command import Commands, add
from pipeline.peers import tls
from pipeline.peers.role import Role
from pipeline.serving import certs


def add_commands(commands: Commands) -> None:
    """Add `certs`."""
    parser = add(
        commands,
        "certs",
        _ca,
        "make a certificate authority for a lab, and certificates for machines (--force renews them)",
        "certs --out pki ca",
        "certs --out pki issue pi-1 --host pi-1.local --host 192.168.1.20 --role node",
        "certs --out pki issue gateway-1 --host gateway.local --role gateway",
        "certs --out pki issue pi-1 --host pi-1.local --force",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the authority's folder")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    authority = verbs.add_parser("ca", help=f"make the authority: DIR/{tls.CA_FILE} and DIR/{certs.CA_KEY_FILE}")
    authority.set_defaults(run=_ca)
    _add_common(authority, certs.CA_DAYS)
    issue = verbs.add_parser("issue", help="issue a certificate into DIR/NAME, for --tls")
    issue.set_defaults(run=_issue)
    issue.add_argument("name", metavar="NAME", help="the machine's name, and its folder's")
    issue.add_argument(
        "--host", action="append", default=[], metavar="HOST", help="a name or address it is called by; repeatable"
    )
    issue.add_argument(
        "--role", type=Role, choices=list(Role), action="append", metavar="ROLE",
        help=f"{', '.join(Role)} (default: node); repeatable",
    )  # fmt: skip
    _add_common(issue, certs.DAYS)


def _add_common(parser: argparse.ArgumentParser, days: int) -> None:
    parser.add_argument("--days", type=int, default=days, help=f"how long it is valid (default: {days})")
    parser.add_argument("--force", action="store_true", help="replace what is there")


def _ca(args: argparse.Namespace) -> None:
    certs.write_authority(args.out, certs.new_authority(datetime.now(UTC), args.days), force=args.force)
    output.say(f"{args.out / tls.CA_FILE}: an authority for {args.days} days; keep {certs.CA_KEY_FILE} to yourself")


def _issue(args: argparse.Namespace) -> None:
    authority = certs.read_authority(args.out)
    roles = args.role or [Role.NODE]
    made = certs.issue(authority, args.name, hosts=args.host, roles=roles, now=datetime.now(UTC), days=args.days)
    certs.write_issued(args.out / args.name, authority, made, force=args.force)
    told = f"{', '.join(roles)}, valid for {args.days} days"
    output.say(f"{args.out / args.name}: a certificate for {', '.join(args.host) or args.name} ({told})")
