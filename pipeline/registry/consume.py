"""What every consumer does first: find a release, by channel or by version, and decide whether it may be used.

Rules: everything read is bounded; nothing is used before its signature holds; the decision is `manifest.rules`'s.
"""

from __future__ import annotations

from datetime import datetime

from pipeline.catalog.names import Channel
from pipeline.errors import RegistryError
from pipeline.manifest import rules
from pipeline.manifest.dsse import Opener
from pipeline.manifest.pointer import PointerPredicate
from pipeline.manifest.rules import Accepted, Bundles, Seen
from pipeline.registry import layout, record
from pipeline.registry.row import Row
from pipeline.registry.store import Store


def fetch(
    store: Store,
    *,
    opener: Opener,
    line: str,
    seen: Seen,
    now: datetime,
    channel: Channel | None = None,
    version: int | None = None,
    allow_rollback: bool = False,
) -> Accepted:
    """Return the release a channel points to, or the one with a version.

    Args:
        seen: what this consumer remembers; afterwards remember the result's `seen`.
        allow_rollback: the user knows that the version may be older than one seen and means it.

    Raises:
        RegistryError: there is no such release or channel; the hint lists what there is.
        TrustError: see `Refusal`.
    """
    if (channel is None) == (version is None):
        raise ValueError("name either a channel or a version")
    pointer: PointerPredicate | None = None
    rolled_back = False
    if channel is not None:
        row, before = Row(store, opener, line, channel), seen
        pointer, seen = _follow(row, seen)
        last = seen.releases.get(channel)
        missed = last is not None and pointer.version < last.version
        rolled_back = pointer.rollback or (missed and row.rolled_back(before))
    wanted = version if version is not None else pointer.version if pointer else 0
    bundles = load(store, line, wanted)
    if bundles is None:
        raise RegistryError(f"there is no release {wanted} of {line} in {store.url}", hint=_published(store, line))
    return rules.accept_release(
        bundles,
        opener=opener,
        line=line,
        version=wanted,
        seen=seen,
        now=now,
        pointer=pointer,
        rolled_back=rolled_back,
        allow_rollback=allow_rollback,
    )


def newer(
    store: Store, *, opener: Opener, line: str, channel: Channel, seen: Seen, now: datetime, held: str | None
) -> Accepted | None:
    """Return the release a channel points to, None where that is the one `held`, by its manifest's hex SHA-256.

    Raises as `fetch`.
    """
    found = Row(store, opener, line, channel).latest(seen)
    if found and found[0].manifest_sha256 == held:
        return None
    return fetch(store, opener=opener, line=line, seen=seen, now=now, channel=channel)


def releases(store: Store, line: str) -> list[int]:
    """Return the versions published under a line, ascending."""
    prefix = layout.releases(line)
    return layout.numbers(store.names(prefix), prefix)


def channels(store: Store, line: str) -> list[str]:
    """Return the names of a line's channels."""
    prefix = layout.channels(line)
    return sorted({name.removeprefix(prefix).split("/")[0] for name in store.names(prefix)})


def load(store: Store, line: str, version: int) -> Bundles | None:
    """Return the unverified bundles stored under a version, or None where there is no such release."""
    data = store.read(layout.release(line, version), layout.MAX_RECORD)
    return None if data is None else record.decode(data)


def _follow(row: Row, seen: Seen) -> tuple[PointerPredicate, Seen]:
    found = row.latest(seen)
    if found is None:
        there = channels(row.store, row.line)
        hint = f"{row.line} has {', '.join(there)}" if there else _published(row.store, row.line)
        raise RegistryError(f"there is no channel {row.label} in {row.store.url}", hint=hint)
    return found


def _published(store: Store, line: str) -> str:
    versions = [str(v) for v in releases(store, line)[-8:]]
    return f"published are {', '.join(versions)}" if versions else f"nothing is published there under {line}"
