"""What makes a release acceptable, once its signature holds.

Rules, in this order: the name it was fetched under, the signer's tag, the channel's pointer, the release's other
statements, equivocation and rollback against what was seen before, expiry against a clock that never runs back.
Everything is an argument; a decision or a TrustError comes out.

What was seen is kept for each channel, because channels stand at different releases. A channel's release may not be
older than the last one accepted there. A release asked for by its version has no channel to say that it is current: it
may not be older than any that was seen, unless it is the very one last accepted on some channel or by version. One
version with two contents is refused wherever the other content was seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from pipeline.errors import Refusal, TrustError
from pipeline.manifest import oms, pointer, provenance, statement
from pipeline.manifest.dsse import Opener
from pipeline.manifest.pointer import PointerPredicate
from pipeline.manifest.statement import Manifest

BY_VERSION = "by-version"


@dataclass(frozen=True)
class Last:
    """The release last accepted; `digest` pins its manifest."""

    version: int
    digest: str


@dataclass(frozen=True)
class Seen:
    """What a consumer remembers, on storage the registry cannot write.

    `releases`, `serials` and `pointers` are by channel, releases asked for by version under BY_VERSION; `time` is in
    seconds since 1970 (UTC).
    """

    releases: dict[str, Last] = field(default_factory=dict)
    serials: dict[str, int] = field(default_factory=dict)
    pointers: dict[str, str] = field(default_factory=dict)
    time: float = 0.0


@dataclass(frozen=True)
class Bundles:
    """The signed statements of one release, as stored: manifest, SLSA provenance, one OMS signature a variant."""

    manifest: bytes
    provenance: bytes
    variants: dict[str, bytes]


@dataclass(frozen=True)
class Accepted:
    """A release that may be used, with the bundles that say so; `digest` pins the manifest, remember `seen`.

    `rolled_back`: its channel went back since what was seen, so what is remembered of it may go back too.
    """

    manifest: Manifest
    digest: str
    seen: Seen
    bundles: Bundles
    pointer: PointerPredicate | None = None
    rolled_back: bool = False

    @property
    def slot(self) -> str:
        """Where `seen` has this release: under its channel, or BY_VERSION."""
        return _slot(self.pointer)


def accept_pointer(
    bundle: bytes, *, opener: Opener, line: str, channel: str, serial: int, seen: Seen
) -> tuple[PointerPredicate, Seen]:
    """Return a channel's pointer and what to remember of it.

    Whichever tag's run signed it: a pointer pins the manifest's digest, and the manifest must be signed by a run of its
    own tag. A rollback is signed by a newer run than the release it leads to.

    Args:
        serial: under which the registry stored the pointer.

    Raises:
        TrustError: the signature's refusals, SWAPPED, ROLLBACK (older than one seen), or EQUIVOCATION (the same
            serial with other content).
    """
    opened = opener(bundle)
    found = pointer.parse(opened.payload)
    if (found.line, found.channel, found.serial) != (line, channel, serial):
        stored, inside = f"{line}/{channel} {serial}", f"{found.line}/{found.channel} {found.serial}"
        raise TrustError(Refusal.SWAPPED, f"the pointer stored as {stored} is for {inside}")
    last = seen.serials.get(channel, 0)
    if serial < last:
        raise TrustError(Refusal.ROLLBACK, f"rollback: channel {channel} shows serial {serial}, but {last} was seen")
    digest = statement.digest(opened.payload)
    if serial == last and digest != seen.pointers.get(channel):
        raise TrustError(Refusal.EQUIVOCATION, f"channel {channel} has two different pointers with serial {serial}")
    return found, replace(seen, serials={**seen.serials, channel: serial}, pointers={**seen.pointers, channel: digest})


def accept_release(
    bundles: Bundles,
    *,
    opener: Opener,
    line: str,
    version: int,
    seen: Seen,
    now: datetime,
    pointer: PointerPredicate | None = None,
    rolled_back: bool = False,
    allow_rollback: bool = False,
) -> Accepted:
    """Return the release if every rule holds.

    Args:
        version: under which the registry stored the release.
        pointer: an accepted pointer that led here.
        rolled_back: of its channel's moves since what was seen one is a rollback, which permits an older version.
        allow_rollback: the user knows that the version may be older than one seen and means it.

    Raises:
        TrustError: see `Refusal`; nothing of the payload is used before its signature holds.
    """
    opened = opener(bundles.manifest)
    manifest = statement.parse(opened.payload)
    digest = statement.digest(opened.payload)
    release = manifest.release
    if (release.line, release.version) != (line, version):
        raise TrustError(
            Refusal.SWAPPED,
            f"the manifest stored as {line} {version} is for {release.line} {release.version}",
        )
    if opened.tag is not None and opened.tag != release.tag:
        raise TrustError(Refusal.WRONG_SIGNER, f"it says tag {release.tag}, but was signed by a run for {opened.tag}")
    if pointer is not None and (pointer.version, pointer.manifest_sha256) != (version, digest):
        raise TrustError(
            Refusal.SWAPPED,
            f"channel {pointer.channel} points to another manifest of {line} {pointer.version}",
        )
    _check_same_release(bundles, manifest, opener)
    clock = max(now.timestamp(), seen.time)  # a board without a clock battery may wake up in the past
    last, slot = Last(version, digest), _slot(pointer)
    check_same(last, seen)
    if not (allow_rollback or rolled_back):
        _check_not_older(version, slot, seen)
    if clock >= manifest.expires.timestamp():
        today = datetime.fromtimestamp(clock, UTC)
        raise TrustError(
            Refusal.EXPIRED,
            f"release {line} {version} expired on {manifest.expires:%Y-%m-%d}, and it is {today:%Y-%m-%d}",
            hint="publish or pull a newer release",
        )
    return Accepted(
        manifest,
        digest,
        replace(seen, releases={**seen.releases, slot: last}, time=clock),
        bundles,
        pointer,
        rolled_back=rolled_back,
    )


def check_same(found: Last, seen: Seen) -> None:
    """Raise TrustError EQUIVOCATION where the same version was seen with other content, on whichever channel."""
    for slot, last in seen.releases.items():
        if last.version == found.version and last.digest != found.digest:
            raise TrustError(
                Refusal.EQUIVOCATION, f"release {found.version} was seen before{_on(slot)} with other content"
            )


def _check_not_older(version: int, slot: str, seen: Seen) -> None:
    known = [last.version for other, last in seen.releases.items() if slot in {other, BY_VERSION}]
    if version < max(known, default=0) and version not in known:
        raise TrustError(
            Refusal.ROLLBACK,
            f"rollback: release {version} is older than {max(known)}, which was seen before{_on(slot)}",
            hint="if you mean to go back, add --allow-rollback",
        )


def _slot(pointer: PointerPredicate | None) -> str:
    return BY_VERSION if pointer is None else str(pointer.channel)


def _on(slot: str) -> str:
    return "" if slot == BY_VERSION else f" on channel {slot}"


def _check_same_release(bundles: Bundles, manifest: Manifest, opener: Opener) -> None:
    provenance.check_covers(opener(bundles.provenance).payload, manifest)
    entries = {e.name: e for e in manifest.entries}
    if set(bundles.variants) != set(entries):
        raise TrustError(Refusal.MIXED, "the release's signatures and its variants differ")
    for name, bundle in bundles.variants.items():
        oms.check_covers(opener(bundle).payload, name, entries[name].files)
