"""What a consumer does: verify, show, list and pull. Nothing is used, shown or kept before it verified."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from pipeline.catalog.names import Channel, Variant
from pipeline.cli import output
from pipeline.cli.access import Access, add_consumer_options
from pipeline.cli.command import Commands, add
from pipeline.errors import CatalogError
from pipeline.manifest.rules import Accepted
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
        "verify models/current",
    )
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
        "fetch one variant, verified, and activate it as DIR/current",
        "pull tiny-edge-arm64 --into models",
        "pull large-x86_64 --into models --channel stable",
    )
    pulling.add_argument("variant", metavar="VARIANT", help="e.g. tiny-edge-arm64")
    pulling.add_argument(
        "--into", type=Path, required=True, metavar="DIR", help="folder; the active one is DIR/current"
    )
    add_consumer_options(pulling)


def _fetch(access: Access) -> Accepted:
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


def _remember(access: Access, accepted: Accepted) -> None:
    state.remember(access.state, accepted, allow_rollback=access.args.allow_rollback)


def _verify(args: argparse.Namespace) -> None:
    access = Access(args)
    with output.byte_bars() as progress:
        if args.folder:
            _verify_folder(access, progress)
            return
        accepted = _fetch(access)
        verify.verify_release(access.store, accepted, progress)
    _remember(access, accepted)
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
    _report(access.args, accepted, f"{access.args.folder}: ")


def _report(args: argparse.Namespace, accepted: Accepted, where: str) -> None:
    release = accepted.manifest.release
    files, entries = accepted.manifest.files(), accepted.manifest.predicate.variants
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
    held = "every file of a variant" if args.folder else f"{len(files)} files, {len(entries)} variants"
    output.say(
        f"{where}release {release.line} {release.version} ({release.tag}) verified: {held}, "
        f"valid until {release.expires:%Y-%m-%d}"
    )


def _show(args: argparse.Namespace) -> None:
    accepted = _fetch(Access(args))
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


def _pull(args: argparse.Namespace) -> None:
    try:
        variant = Variant.parse(args.variant)
    except ValueError as e:
        raise CatalogError(str(e), hint="choose one of them") from e
    access = Access(args)
    accepted = _fetch(access)
    with output.byte_bars() as progress:
        folder = pull(access.store, accepted, variant=variant.name, into=args.into, progress=progress)
    _remember(access, accepted)
    release = accepted.manifest.release
    if args.json:
        output.emit({"variant": variant.name, "version": release.version, "folder": str(folder)})
        return
    output.say(f"{variant} of release {release.line} {release.version} is active in {args.into / 'current'}")
