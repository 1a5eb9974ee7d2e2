"""The controller's command, and the replay of its log."""

from __future__ import annotations

import argparse
import os
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.cli import output
from pipeline.cli.access import add_json_option
from pipeline.cli.command import Commands, add, address, needs
from pipeline.errors import CatalogError, StageError, ToolError

if TYPE_CHECKING:
    from pipeline.control.controller import Controller
    from pipeline.control.settings import Settings
    from pipeline.ports.kube import Cluster

PORT = 8090


def add_commands(commands: Commands) -> None:
    """Add the command."""
    controller = add(
        commands,
        "controller",
        _controller,
        "observe the fleet, decide, act: policies of gateways, replicas of pools, batch pods that yield to bursts",
        "controller --config controller.yaml --tls pki/controller",
        "controller --gateway https://gateway.local:8089 --tls pki/controller --no-kubernetes",
        "controller --config controller.yaml --tls pki/controller --prometheus http://prometheus:9090",
        "controller --config controller.yaml --tls pki/controller --once --dry-run",
        "controller replay ~/.local/state/edge-release/controller/decisions.jsonl",
    )
    _add_options(controller)
    add_json_option(controller)
    verbs: Commands = controller.add_subparsers(title="verbs", metavar="VERB")
    replay = add(
        verbs,
        "replay",
        _replay,
        "decide every round of a log again; exit with 5 unless the same comes out",
        "controller replay decisions.jsonl",
        "controller replay decisions.jsonl.1 --json",
    )
    replay.add_argument("log", type=Path, metavar="LOG", help="a decision log: decisions.jsonl of --state")
    add_json_option(replay)


def _add_options(parser: argparse.ArgumentParser) -> None:
    look = parser.add_argument_group("what it looks at")
    look.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="pools, policy, numbers (docs/settings.md); read again when it changes",
    )
    look.add_argument(
        "--gateway", action="append", default=[], metavar="URL", help="a gateway's admin port; repeatable"
    )
    look.add_argument("--prometheus", metavar="URL", help="ask it instead of each server (policies: the gateways)")
    look.add_argument(
        "--tls", type=Path, metavar="DIR", help="ca.pem, cert.pem and key.pem of role controller (edge-release certs)"
    )
    act = parser.add_argument_group("what it does")
    act.add_argument("--no-kubernetes", action="store_true", help="steer gateways alone (also without a kubeconfig)")
    act.add_argument("--context", metavar="NAME", help="a context of KUBECONFIG other than its current one")
    act.add_argument("--dry-run", action="store_true", help="decide and log, do nothing")
    act.add_argument("--once", action="store_true", help="one round, then end; it takes a look before, for rates")
    act.add_argument(
        "--state", type=Path, metavar="DIR",
        help="decision log and history (default: ~/.local/state/edge-release/controller)",
    )  # fmt: skip
    act.add_argument(
        "--health", type=address, default=("127.0.0.1", PORT), metavar="HOST:PORT",
        help=f"/metrics, /healthz, /readyz, without certificates (default: 127.0.0.1:{PORT})",
    )  # fmt: skip
    act.add_argument("--name", metavar="NAME", help="what it calls itself in the lease (default: host and process)")
    act.add_argument("--lease", default="edge-release", metavar="NAMESPACE", help="of the lease (default: %(default)s)")


def _controller(args: argparse.Namespace) -> None:
    with needs("the controller needs", "control"):
        from pipeline.control import run
        from pipeline.peers import listen
    options = run.Options(
        settings=_settings(args),
        folder=_folder(args),
        tls=args.tls,
        cluster=_cluster(args),
        name=args.name or f"{socket.gethostname()}-{os.getpid()}",
        lease=args.lease,
        dry_run=args.dry_run,
        reread=partial(_settings, args) if args.config else None,
    )
    if args.once:
        _told(args, *run.once(options, output.note))
        return
    bound = listen.bind(*args.health, tls=False, insecure=True)
    run.run(run.with_port(options, bound), output.note)


def _settings(args: argparse.Namespace) -> Settings:
    from pipeline.control.settings import GatewayEntry, Settings, parse_settings
    from pipeline.ports import files

    found = files.load(args.config, parse_settings) if args.config else Settings()
    try:
        added = [GatewayEntry(name=urlsplit(url).netloc, url=url.rstrip("/")) for url in args.gateway]
        changed = {
            **dict(found),
            "gateways": [*found.gateways, *added],
            "prometheus": args.prometheus or found.prometheus,
        }
        found = Settings.model_validate(changed)
    except ValueError as e:
        raise CatalogError(f"the gateways cannot be used: {e}", hint="give addresses such as https://gw:8089") from e
    if not found.gateways:
        raise CatalogError("no gateway is named", hint="give --gateway URL, or gateways in --config FILE")
    return found


def _cluster(args: argparse.Namespace) -> Cluster | None:
    from pipeline.ports import kube_api

    if args.no_kubernetes:
        return None
    try:
        return kube_api.connect(args.context)
    except ToolError as e:
        if args.context:
            raise
        output.note(f"gateways are steered, pools are not scaled: {e.message}")
        return None


def _folder(args: argparse.Namespace) -> Path:
    if args.state:
        return Path(args.state)
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local/state") / "edge-release/controller"


def _told(args: argparse.Namespace, controller: Controller, did: list[Any]) -> None:
    from pipeline.control.controller import described, told
    from pipeline.control.log import told as as_json

    last = controller.last
    if last is None:
        raise ToolError("another controller leads, or the round failed", hint="--dry-run decides without leading")
    if args.json:
        outcomes = [{"outcome": d.outcome, "detail": d.detail} for d in did]
        document = {"now": last.now, "state": as_json(last.state), "actions": as_json(last.actions), "did": outcomes}
        output.emit({**document, "unanswered": dict(controller.parts.fetch.problems)})
        return
    for action in last.actions if args.dry_run else []:
        output.say(f"would: {described(action)}")
    for done in did:
        output.say(told(done))
    if not last.actions:
        output.say("nothing is to be done")


def _replay(args: argparse.Namespace) -> None:
    with needs("the controller needs", "control"):
        from pipeline.control.log import replay, told
    rounds, others = 0, []
    for found in replay(args.log):
        rounds += 1
        if not found.same:
            others.append(found)
    if args.json:
        told_ = [{"line": o.line, "decided": told(o.decided), "now": told(o.now_decided)} for o in others]
        output.emit({"rounds": rounds, "same": rounds - len(others), "others": told_})
    else:
        for other in others:
            output.say(f"line {other.line}: decided {told(other.decided)}, now {told(other.now_decided)}")
        output.say(f"{rounds} rounds, {rounds - len(others)} decided the same")
    if others:
        raise StageError(f"{len(others)} of {rounds} rounds are decided otherwise now", hint="see the lines above")
