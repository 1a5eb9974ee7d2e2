"""The command that brings a release to Kubernetes."""

from __future__ import annotations

import argparse
import os
import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.catalog.golden import GoldenPrompt
from pipeline.cli import output
from pipeline.cli.access import (
    REGISTRY_VARIABLE,
    Access,
    add_consumer_options,
    add_evidence_option,
    trust_file,
)
from pipeline.cli.command import Commands, add, needs
from pipeline.cli.consume import fetch, remember, require_evidence
from pipeline.errors import CatalogError, GateError
from pipeline.manifest.statement import VariantEntry

if TYPE_CHECKING:
    from pipeline.deploy.canary import Progress
    from pipeline.deploy.changes import Change
    from pipeline.deploy.gitops import Repository
    from pipeline.deploy.job import Job, Outcome, Site
    from pipeline.deploy.settings import Settings

KEY_VARIABLE = "EDGE_RELEASE_API_KEY"
BASE = Path("manifests/k8s")


def add_commands(commands: Commands) -> None:
    """Add the command."""
    deploy = add(
        commands,
        "deploy",
        _deploy,
        "bring a channel's verified release to Kubernetes, one Pi first; what fails is rolled back",
        "deploy --config deploy.yaml --channel stable --gitops ../fleet",
        "deploy --config deploy.yaml --channel stable --gitops git@example.org:shop/fleet --rollout",
        "deploy --config deploy.yaml --channel stable --apply --dry-run",
        "deploy --config deploy.yaml --release 8 --apply",
        "deploy --config deploy.yaml --apply --rollback",
    )
    deploy.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="the site's settings (docs/deploy.md)"
    )
    deploy.add_argument(
        "--base", type=Path, default=BASE, metavar="DIR", help="what is rendered (default: %(default)s)"
    )
    _add_target(deploy)
    _add_watching(deploy)
    add_evidence_option(deploy)
    add_consumer_options(deploy)


def _add_target(deploy: argparse.ArgumentParser) -> None:
    group = deploy.add_argument_group("where to")
    group.add_argument("--gitops", metavar="REPO", help="commit to this work tree, or to this repository and push")
    group.add_argument("--path", default="edge-release", metavar="DIR", help="in the repository (default: %(default)s)")
    group.add_argument("--branch", metavar="NAME", help="of the repository (default: the one that HEAD names)")
    group.add_argument("--apply", action="store_true", help="apply to the cluster of KUBECONFIG, and roll out")
    group.add_argument("--rollout", action="store_true", help="with --gitops: roll out what Argo CD or Flux applies")
    group.add_argument("--rollback", action="store_true", help="bring back what was there before the last rollout")
    group.add_argument("--dry-run", action="store_true", help="show the diff, change nothing")
    group.add_argument("--force", action="store_true", help="take over fields that others manage")
    group.add_argument("--context", metavar="NAME", help="of the kubeconfig (default: its current one)")


def _add_watching(deploy: argparse.ArgumentParser) -> None:
    group = deploy.add_argument_group(
        "how it is watched", f"the API key that the gateway asks for is taken from {KEY_VARIABLE}"
    )
    group.add_argument(
        "--ca", type=Path, metavar="FILE", help="authority of the gateway's certificate, if none of this host's"
    )
    group.add_argument("--tls", type=Path, metavar="DIR", help="certificate for the gateway's admin port (door.status)")
    group.add_argument(
        "--without-figures", action="store_true", help="roll out without Prometheus: golden prompts alone decide"
    )


def _deploy(args: argparse.Namespace) -> None:
    if bool(args.gitops) == args.apply:
        raise CatalogError("where to?", hint="give either --gitops REPO or --apply")
    with needs("the deploy job needs", "control"):
        from pipeline.deploy import gitops
        from pipeline.deploy.gitops import Repository

    settings = _settings(args)
    access = Access(args)
    if not (args.registry or os.environ.get(REGISTRY_VARIABLE)):
        args.registry = settings.registry
    job = _job(args, settings, access)
    repository = Repository(args.gitops, args.path, args.branch) if args.gitops else None
    if args.dry_run:
        _show(args, *_changes(args, job, repository))
        return
    if repository and not (args.rollout or args.rollback):
        done = job.committed(repository)
        remember(access, job.wanted.release)
        _committed(args, job, done.commit, gitops.changes(done.before, done.after), repository)
        return
    outcome = _rolled_out(args, job, repository)
    if not args.rollback:
        remember(access, job.wanted.release)
    _report(args, outcome)


def _settings(args: argparse.Namespace) -> Settings:
    from pipeline.deploy.settings import parse_settings
    from pipeline.ports import files

    return files.load(args.config, parse_settings)


def _job(args: argparse.Namespace, settings: Settings, access: Access) -> Job:
    from pipeline.deploy import base, golden
    from pipeline.deploy.job import Job
    from pipeline.deploy.render import Wanted

    def fetched() -> Wanted:
        accepted = fetch(access)
        require_evidence(access, accepted)
        return Wanted(accepted, _trust(args, access), settings)

    def prompts(entry: VariantEntry) -> list[GoldenPrompt]:
        return golden.prompts(access.store, entry)

    say = (lambda _: None) if args.json else output.note
    back = args.release is not None or args.allow_rollback
    return Job(settings, fetched, base.load(args.base, settings.components), prompts, say, back)


def _trust(args: argparse.Namespace, access: Access) -> dict[str, str]:
    """Return the files by which pods know whom to trust: those that this run trusts."""
    from pipeline.ports.trust import load_trust

    path = args.trust or trust_file(access.line)
    found, pinned = {"trust.yaml": path.read_text(encoding="utf-8")}, load_trust(path)
    root = pinned.sigstore.trusted_root if pinned.sigstore else "production"
    if root != "production":
        if Path(root).name != root:
            raise CatalogError(f"{path}: pods cannot have {root}", hint="put the trusted root beside the trust file")
        found[root] = (path.parent / root).read_text(encoding="utf-8")
    return found


def _changes(args: argparse.Namespace, job: Job, repository: Repository | None) -> tuple[int | None, Sequence[Change]]:
    """Return which release would serve, and what would change."""
    from pipeline.deploy import gitops
    from pipeline.deploy.job import look, look_back
    from pipeline.ports.kube_api import connect

    if args.rollback:
        last, changes = look_back(connect(args.context), job.settings.namespace, repository)
        return last.before, changes
    if repository is None:
        return job.wanted.version, look(job, connect(args.context), force=args.force)
    with repository.opened() as root:
        before = gitops.read(root, repository)
    return job.wanted.version, gitops.changes(before, job.rendered(before, alone=not args.rollout))


def _rolled_out(args: argparse.Namespace, job: Job, repository: Repository | None) -> Outcome:
    from pipeline.deploy.job import Run

    run = Run(job, _site(args, job.settings), repository, force=args.force)
    return run.roll_back() if args.rollback else run.deploy()


def _site(args: argparse.Namespace, settings: Settings) -> Site:
    from pipeline.deploy.door import Gateway
    from pipeline.deploy.job import Site
    from pipeline.peers import tls
    from pipeline.peers.role import Role
    from pipeline.ports.kube_api import connect
    from pipeline.ports.prometheus import Prometheus

    door = settings.door
    if door is None:
        raise CatalogError(f"{args.config}: nothing says where the gateway is", hint="door: {url: https://…}")
    if door.prometheus is None and not args.without_figures:
        raise CatalogError(
            f"{args.config}: nothing says where Prometheus is",
            hint="door: {prometheus: http://…}, or --without-figures",
        )
    public = ssl.create_default_context(cafile=args.ca) if door.url.startswith("https") else None
    admin = tls.client_context(args.tls, [Role.GATEWAY]) if args.tls else None
    gateway = Gateway(door.url, door.status, os.environ.get(KEY_VARIABLE), public, admin)
    prometheus = None if args.without_figures or door.prometheus is None else Prometheus(door.prometheus)
    holder = f"{socket.gethostname()}-{os.getpid()}"
    return Site(connect(args.context), gateway, prometheus, time.time, time.monotonic, time.sleep, holder)


def _show(args: argparse.Namespace, version: int | None, changes: Sequence[Change]) -> None:
    """Print the diff, and fail where others manage a field."""
    from pipeline.deploy import apply

    if args.json:
        output.emit({"release": version, "dry_run": True, "changes": [_told(c, diff=True) for c in changes]})
    else:
        for change in changes:
            output.say(change.diff)
        output.note(f"release {version}: {_counts(changes)}; nothing was changed")
    if not args.force:
        apply.check(changes)


def _committed(
    args: argparse.Namespace, job: Job, commit: str | None, changes: Sequence[Change], repository: Repository
) -> None:
    if args.json:
        output.emit({"release": job.wanted.version, "commit": commit, "changes": [_told(c) for c in changes]})
    elif commit is None:
        output.say(f"release {job.wanted.version} is committed already, nothing changed")
    else:
        output.say(f"release {job.wanted.version} is commit {commit[:12]} of {repository.source}: {_counts(changes)}")
        if not repository.elsewhere:
            output.note("push it; --rollout takes it through the steps once it is applied")


def _report(args: argparse.Namespace, outcome: Outcome) -> None:
    """Tell how a rollout ended; raises GateError where it was rolled back."""
    from pipeline.deploy.canary import Phase

    ended = outcome.progress
    assert ended is not None, "a rollout has an end"
    if args.json:
        output.emit(
            {
                "release": ended.release, "phase": ended.phase, "before": ended.before, "reason": ended.reason,
                "commit": outcome.commit, "changes": [_told(c) for c in outcome.changes],
            }
        )  # fmt: skip
    if ended.phase is Phase.FAILED and not args.rollback:
        raise GateError(f"release {ended.release} was rolled back: {ended.reason}", hint=_serves(ended))
    if not args.json:
        done = f"{_counts(outcome.changes)}; serves everywhere" if ended.phase is Phase.DONE else _serves(ended)
        output.say(f"release {ended.release}: {done}")


def _serves(ended: Progress) -> str:
    if ended.before is None:
        return "nothing was there before; kubectl get pods tells more"
    return f"release {ended.before} serves; what failed is in the reason, and in the namespace's events"


def _counts(changes: Sequence[Change]) -> str:
    found = {verb: sum(c.verb == verb for c in changes) for verb in ("create", "change", "delete")}
    return ", ".join(f"{count} to {verb}" for verb, count in found.items() if count) or "nothing to change"


def _told(change: Change, *, diff: bool = False) -> dict[str, object]:
    kind, namespace, name = change.key
    found: dict[str, object] = {"verb": change.verb, "kind": kind, "namespace": namespace, "name": name}
    if change.conflicts:
        found["conflicts"] = [{"manager": c.manager, "field": c.field} for c in change.conflicts]
    return found | ({"diff": change.diff} if diff else {})
