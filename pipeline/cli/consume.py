"""What a consumer does: verify, show, list and pull. Nothing is used, shown or kept before it verified."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from pipeline.catalog.names import VARIANTS, Channel, Target, Variant
from pipeline.cli import output
from pipeline.cli.access import Access, add_consumer_options, add_evidence_option
from pipeline.cli.command import Commands, add
from pipeline.errors import CatalogError
from pipeline.manifest import proof
from pipeline.manifest.rules import Accepted
from pipeline.manifest.statement import runtime_name
from pipeline.registry import consume, state, verify
from pipeline.registry.channels import history
from pipeline.registry.pull import pull
from pipeline.registry.store import Progress


def add_commands(commands: Commands) -> None:
    """Add the consumer's commands."""
    verifying = add(
        commands,
        "verify",
        _verify,
        "check signatures, rules and every byte, of a registry's release or a pulled folder",
        "verify",
        "verify --channel stable --registry s3://models/releases",
        "verify --release 7 --json",
        "verify --channel stable --require-evidence pi5",
        "verify models/current",
    )
    add_evidence_option(verifying)
    verifying.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="a folder that was pulled")
    add_consumer_options(verifying)
    show = add(
        commands,
        "show",
        _show,
        "print a verified release: variants, files, recipes, evidence, gate",
        "show",
        "show --release 7 --json",
    )
    add_consumer_options(show)
    releases = add(commands, "releases", _releases, "list what is published, and where the channels point", "releases")
    add_consumer_options(releases)
    pulling = add(
        commands,
        "pull",
        _pull,
        "fetch one variant or runtime, verified, and activate it as DIR/current",
        "pull tiny-edge-arm64 --into models",
        "pull large-x86_64 --into models --channel stable",
        "pull tiny-edge-arm64+lookup --into models",
        "pull runtime-arm64 --into runtime",
    )
    pulling.add_argument("variant", metavar="VARIANT", help="e.g. tiny-edge-arm64, or runtime-arm64 for its programs")
    pulling.add_argument(
        "--into", type=Path, required=True, metavar="DIR", help="folder; the active one is DIR/current"
    )
    add_evidence_option(pulling)
    add_consumer_options(pulling)


def require_evidence(access: Access, accepted: Accepted, variant: str | None = None) -> None:
    """Raise TrustError where evidence that the flags ask for is missing."""
    for runner in access.args.require_evidence:
        proof.require(accepted.manifest, runner, access.evidence_opener(runner), variant)


def fetch(access: Access) -> Accepted:
    """Return the release that the flags name, verified; raises RegistryError and TrustError."""
    args = access.args
    channel = None if args.release else args.channel or Channel.DEV
    return consume.fetch(
        access.store,
        opener=access.opener,
        line=access.line,
        seen=state.load(access.state),
        now=datetime.now(UTC),
        channel=channel,
        version=args.release,
        allow_rollback=args.allow_rollback,
    )


def remember(access: Access, accepted: Accepted) -> None:
    """Take note of a release that was used."""
    state.remember(access.state, accepted, allow_rollback=access.args.allow_rollback)


def _verify(args: argparse.Namespace) -> None:
    access = Access(args)
    with output.byte_bars() as progress:
        if args.folder:
            _verify_folder(access, progress)
            return
        accepted = fetch(access)
        require_evidence(access, accepted)
        verify.verify_release(access.store, accepted, progress)
    remember(access, accepted)
    _report(args, accepted, f"{access.store.url}: ")


def _verify_folder(access: Access, progress: Progress) -> None:
    # A folder has no registry: its state is that of the place it lies in, beside the line's others.
    access.args.registry = access.args.registry or str(access.args.folder)
    seen = state.load(access.state)
    accepted = verify.verify_folder(
        access.args.folder,
        opener=access.opener,
        line=access.line,
        seen=seen,
        now=datetime.now(UTC),
        allow_rollback=access.args.allow_rollback,
        progress=progress,
    )
    if access.args.require_evidence:
        require_evidence(access, accepted, verify.held(access.args.folder, accepted))
    _report(access.args, accepted, f"{access.args.folder}: ")


def _report(args: argparse.Namespace, accepted: Accepted, where: str) -> None:
    release = accepted.manifest.release
    files, predicate = accepted.manifest.files(), accepted.manifest.predicate
    if args.json:
        output.emit(
            {
                "verified": True,
                "line": release.line,
                "version": release.version,
                "tag": release.tag,
                "expires": release.expires.isoformat(),
                "manifest_sha256": accepted.digest,
                "files": len(files),
                "channel": accepted.pointer.channel if accepted.pointer else None,
            }
        )
        return
    held = (
        "every file in it"
        if args.folder
        else f"{len(files)} files, {len(predicate.variants)} variants, {len(predicate.runtimes)} runtimes"
    )
    output.say(
        f"{where}release {release.line} {release.version} ({release.tag}) verified: {held}, "
        f"valid until {release.expires:%Y-%m-%d}"
    )


def _show(args: argparse.Namespace) -> None:
    accepted = fetch(Access(args))
    if args.json:
        output.emit(accepted.manifest.model_dump(mode="json", by_alias=True))
        return
    output.say(output.release_summary(accepted.manifest, accepted.digest))


def _releases(args: argparse.Namespace) -> None:
    access = Access(args)
    versions = consume.releases(access.store, access.line)
    pointers = {}
    for name in consume.channels(access.store, access.line):
        if name in set(Channel):
            moves = history(access.store, line=access.line, channel=Channel(name), opener=access.opener)
            pointers[name] = moves[-1].version if moves else None
    if args.json:
        output.emit({"line": access.line, "registry": access.store.url, "releases": versions, "channels": pointers})
        return
    if not versions:
        output.say(f"{access.store.url}: nothing is published under {access.line}")
    for version in versions:
        here = [name for name, target in sorted(pointers.items()) if target == version]
        output.say(f"{access.line} {version}" + (f"  <- {', '.join(here)}" if here else ""))


def _may_be_released(name: str) -> bool:
    try:
        return name in map(runtime_name, Target) or bool(Variant.parse(name))
    except ValueError:
        return False


def _pull(args: argparse.Namespace) -> None:
    if not _may_be_released(args.variant):
        names = [*(v.name for v in VARIANTS), *map(runtime_name, Target)]
        raise CatalogError(f"no variant or runtime {args.variant!r}", hint=f"choose one of {', '.join(names)}")
    access = Access(args)
    accepted = fetch(access)
    require_evidence(access, accepted, args.variant)
    with output.byte_bars() as progress:
        pulled = pull(access.store, accepted, variant=args.variant, into=args.into, progress=progress)
    remember(access, accepted)
    release = accepted.manifest.release
    if args.json:
        output.emit(
            {
                "variant": args.variant,
                "version": release.version,
                "folder": str(pulled.folder),
                "fetched_bytes": pulled.fetched,
                "reused_bytes": pulled.reused,
                "fetched_whole": list(pulled.whole),
            }
        )
        return
    for reason in pulled.whole:
        output.note(reason)
    output.say(
        f"{args.variant} of release {release.line} {release.version} is active in {args.into / 'current'}: "
        f"{pulled.fetched / 1e6:.2f} MB fetched, {pulled.reused / 1e6:.2f} MB were there"
    )
