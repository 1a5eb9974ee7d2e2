"""Sign and publish a built release, and move channels."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from pipeline.catalog.names import Channel
from pipeline.cli import output
from pipeline.cli.access import Access, add_json_option, add_registry_option, add_signer_option, add_trust_options
from pipeline.cli.command import Commands, add
from pipeline.errors import StageError
from pipeline.manifest import statement
from pipeline.manifest.rules import Seen
from pipeline.registry import channels, consume, publish, record, signing
from pipeline.stages.project import MANIFEST_FILE, PROVENANCE_FILE, Project


def add_commands(commands: Commands) -> None:
    """Add the publisher's commands."""
    sign = add(
        commands,
        "sign",
        _sign,
        "sign the built release: keyless in GitHub Actions, with this user's key elsewhere",
        "sign",
        "sign --signer keyless",
    )
    add_signer_option(sign)
    add_trust_options(sign)
    published = add(
        commands,
        "publish",
        _publish,
        "publish the signed release and point a channel to it",
        "publish",
        "publish --registry s3://models/releases --channel dev",
    )
    add_registry_option(published)
    add_trust_options(published)
    add_signer_option(published)
    published.add_argument(
        "--channel",
        type=Channel,
        choices=list(Channel),
        default=Channel.DEV,
        metavar="NAME",
        help=f"{', '.join(Channel)} (default: dev)",
    )
    add_json_option(published)
    promote = add(
        commands,
        "promote",
        _promote,
        "point a channel to a published release, if its evidence allows that",
        "promote 7 canary",
    )
    promote.add_argument("version", type=int, metavar="RELEASE", help="a published version")
    promote.add_argument("to_channel", type=Channel, choices=list(Channel), metavar="CHANNEL", help=", ".join(Channel))
    back = add(
        commands,
        "rollback",
        _rollback,
        "point a channel back to the release before",
        "rollback stable",
        "rollback stable --to 5",
    )
    back.add_argument("to_channel", type=Channel, choices=list(Channel), metavar="CHANNEL", help=", ".join(Channel))
    back.add_argument(
        "--to", type=int, metavar="VERSION", help="an older release of this line (default: the one before)"
    )
    for parser in (promote, back):
        add_registry_option(parser)
        add_trust_options(parser)
        add_signer_option(parser)


def _project() -> Project:
    project = Project.load()
    if not (project.release / MANIFEST_FILE).exists():
        raise StageError("there is no built release here", hint="run dvc repro (or make release) first")
    return project


def _sign(args: argparse.Namespace) -> None:
    from pipeline.stages import attest
    from pipeline.stages.manifest import released_files

    project, access = _project(), Access(args)
    built = statement.parse((project.release / MANIFEST_FILE).read_bytes())
    provenance = (project.release / PROVENANCE_FILE).read_bytes()
    release = built.release
    if release.expires <= datetime.now(UTC):
        raise StageError(
            f"release {release.version} expired on {release.expires:%Y-%m-%d}",
            hint="commit anew, or set SOURCE_DATE_EPOCH=$(date +%s); then dvc repro --force --single-item manifest",
        )
    signer = access.signer
    manifest = attest.embed(project, built, signer, access.opener)
    payload = manifest.encode()
    kept = signing.already(project.signed, payload, provenance, access.opener)
    bundles = kept or signing.sign(payload, provenance, signer)
    signing.write(project.signed, bundles, released_files(project))
    checks = sum(len(entry.attestations) for entry in manifest.predicate.variants)
    done = f"signed: manifest with {checks} checks, provenance, {len(bundles.variants)} x model.sig"
    done = "is signed already" if kept else done
    output.say(f"release {release.line} {release.version}: {done}")


def _publish(args: argparse.Namespace) -> None:
    from pipeline.stages import attest

    project, access = _project(), Access(args)
    if not (project.signed / record.FILE).exists():
        raise StageError("the built release is not signed", hint="run edge-release sign first")
    bundles = record.decode((project.signed / record.FILE).read_bytes())
    manifest = statement.parse(access.opener(bundles.manifest).payload)
    if attest.bare(manifest).encode() != (project.release / MANIFEST_FILE).read_bytes():
        raise StageError("what is signed is not what was built last", hint="run edge-release sign again")
    files = {name: project.signed / name for name in manifest.files()}
    with output.byte_bars() as progress:
        done = publish.publish(
            access.store,
            publish.SignedRelease(bundles, files),
            channel=args.channel,
            signer=access.signer,
            opener=access.opener,
            now=datetime.now(UTC),
            progress=progress,
        )
    pointer = done.pointer
    if args.json:
        output.emit(
            {
                "line": pointer.line,
                "version": pointer.version,
                "manifest_sha256": pointer.manifest_sha256,
                "channel": pointer.channel,
                "serial": pointer.serial,
                "files_stored": done.stored,
                "files_present": done.skipped,
                "registry": access.store.url,
            }
        )
        return
    output.say(output.release_summary(manifest, pointer.manifest_sha256) + "\n")
    output.say(
        f"published {pointer.line} {pointer.version} to {access.store.url}: {done.stored} files stored, "
        f"{done.skipped} were there; channel {pointer.channel} points to it (move {pointer.serial})"
    )


def _promote(args: argparse.Namespace) -> None:
    access = Access(args)
    accepted = consume.fetch(
        access.store, opener=access.opener, line=access.line, seen=Seen(), now=datetime.now(UTC), version=args.version
    )
    pointer = channels.promote(
        access.store, accepted, channel=args.to_channel, signer=access.signer, opener=access.opener
    )
    output.say(f"channel {pointer.channel} points to release {pointer.version} (move {pointer.serial})")


def _rollback(args: argparse.Namespace) -> None:
    access = Access(args)
    pointer = channels.rollback(
        access.store,
        line=access.line,
        channel=args.to_channel,
        signer=access.signer,
        opener=access.opener,
        now=datetime.now(UTC),
        to=args.to,
    )
    output.say(f"channel {pointer.channel} points back to release {pointer.version} (move {pointer.serial})")
