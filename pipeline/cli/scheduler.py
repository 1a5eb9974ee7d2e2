"""The scheduler extender's command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.catalog.names import BOARDS, Channel, RunnerClass
from pipeline.cli import output
from pipeline.cli.access import Access, add_json_option, add_registry_option, add_trust_options
from pipeline.cli.command import Commands, add, needs
from pipeline.errors import CatalogError

if TYPE_CHECKING:
    from pipeline.control.scheduler.app import Extender
    from pipeline.control.scheduler.rules import Refusal

_CLASSES = ", ".join(RunnerClass)


def add_commands(commands: Commands) -> None:
    """Add the command."""
    parser = add(
        commands,
        "scheduler",
        _scheduler,
        "tell kube-scheduler which nodes a server's pod may run on by its verified release, and which suit best",
        "scheduler --registry s3://models/releases --trust trust.yaml",
        "scheduler --channel stable --host 0.0.0.0 --https pki/scheduler",
        "scheduler --accept pi5=emulated",
        "scheduler --explain pod.yaml --json",
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8091, metavar="N", help="port (default: %(default)s)")
    parser.add_argument("--https", type=Path, metavar="DIR", help="cert.pem and key.pem, shown to kube-scheduler")
    parser.add_argument("--insecure", action="store_true", help="take calls from other machines without --https")
    parser.add_argument(
        "--channel", type=Channel, choices=list(Channel), default=Channel.DEV, metavar="NAME",
        help="whose release counts for pods that name none (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--accept", type=_accepted, action="append", default=[], metavar="BOARD=CLASS",
        help=f"take another class's evidence for a board's, as in a lab without boards; repeatable ({_CLASSES})",
    )  # fmt: skip
    parser.add_argument("--context", metavar="NAME", help="a context of KUBECONFIG other than its current one")
    parser.add_argument(
        "--poll",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="between looks at a channel (default: %(default)s)",
    )
    parser.add_argument("--state", type=Path, metavar="FILE", help="what was seen before")
    parser.add_argument(
        "--explain", type=Path, metavar="FILE", help="a pod's manifest: say where it may run and why, and end"
    )
    add_registry_option(parser)
    add_trust_options(parser)
    add_json_option(parser)


def _accepted(text: str) -> tuple[RunnerClass, RunnerClass]:
    board, _, other = text.partition("=")
    if board not in BOARDS or other not in set(RunnerClass):
        raise argparse.ArgumentTypeError(f"{text!r} is not BOARD=CLASS, of {_CLASSES}")
    return RunnerClass(board), RunnerClass(other)


def _scheduler(args: argparse.Namespace) -> None:
    import time
    from datetime import UTC, datetime

    with needs("the scheduler extender needs", "control"):
        from pipeline.control.scheduler.app import Extender
        from pipeline.control.scheduler.releases import Releases, Source
        from pipeline.control.scheduler.rules import Settings
        from pipeline.control.scheduler.run import Options, run
        from pipeline.control.scheduler.watch import Nodes
        from pipeline.peers import listen
        from pipeline.ports import kube_api

    def now() -> datetime:
        return datetime.now(UTC)

    access = Access(args)
    source = Source(
        store=lambda: access.store, opener=access.opener, evidence=access.evidence_opener, line=access.line,
        channel=args.channel, seen=access.state,
    )  # fmt: skip
    extender = Extender(
        Nodes(kube_api.connect(args.context), time.monotonic), Releases(source, now, time.monotonic),
        Settings(accept=dict(args.accept)), time.monotonic, now,
    )  # fmt: skip
    if args.explain:
        _explain(args, extender)
        return
    bound = listen.bind(args.host, args.port, tls=args.https is not None, insecure=args.insecure, option="--https")
    run(Options(bound, args.https, args.poll), extender, output.note)


def _explain(args: argparse.Namespace, extender: Extender) -> None:
    import asyncio
    import threading

    from pipeline.control.scheduler.protocol import Asked
    from pipeline.ports import files

    pod = files.load(args.explain, _pod)
    once = threading.Event()
    once.set()
    extender.nodes.follow_nodes(once)
    extender.nodes.follow_pods(once)
    extender.releases.look()
    asked = Asked(pod, tuple(sorted(extender.nodes.found)))

    async def ask() -> tuple[dict[str, Refusal | None], dict[str, int]]:
        return await extender.decide(asked), await extender.scores(asked)

    found, scores = asyncio.run(ask())
    if doubt := extender.nodes.doubt:
        output.note(doubt)
    told: list[dict[str, Any]] = [
        {"node": name, "score": scores[name] if refusal is None else None, "refused": refusal and refusal.text}
        for name, refusal in found.items()
    ]
    if args.json:
        output.emit(told)
        return
    rows = [["" if cell is None else str(cell) for cell in row.values()] for row in told]
    output.say(output.table(["node", "score", "refused"], rows))


def _pod(text: str, name: str) -> dict[str, Any]:
    """Return the first pod, or template of pods, among a file's documents; raises CatalogError."""
    import yaml

    from pipeline.control.scheduler.protocol import is_sound

    try:
        documents = [d for d in yaml.safe_load_all(text) if isinstance(d, dict)]
    except yaml.YAMLError as e:
        raise CatalogError(f"{name}: not YAML", hint="give a pod's manifest") from e
    pods = [d if d.get("kind") == "Pod" else (d.get("spec") or {}).get("template") for d in documents]
    found = next((pod for pod in pods if isinstance(pod, dict)), None)
    if found is None or not is_sound(found):
        raise CatalogError(
            f"{name}: there is no pod in it", hint="give the manifest of a Pod, StatefulSet or Deployment"
        )
    return found
