"""Move a channel: forward to a release its gate allows, or back to one it pointed to before.

Rules: a release is verified and its files are all there before a channel points to it; going back is said in the
pointer, so that consumers can tell it from a replay.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pipeline.catalog.names import Channel
from pipeline.errors import ConflictError, RegistryError
from pipeline.manifest.dsse import Opener
from pipeline.manifest.pointer import PointerPredicate
from pipeline.manifest.rules import Accepted, Seen
from pipeline.ports.keys import Signer
from pipeline.registry import consume
from pipeline.registry.publish import check_gate, check_not_older
from pipeline.registry.row import Row
from pipeline.registry.store import Store
from pipeline.registry.verify import check_present


def history(store: Store, *, line: str, channel: Channel, opener: Opener) -> list[PointerPredicate]:
    """Return every move of a channel, oldest first; raises TrustError where one is not signed as it must be."""
    return Row(store, opener, line, channel).history()


def promote(store: Store, accepted: Accepted, *, channel: Channel, signer: Signer, opener: Opener) -> PointerPredicate:
    """Point a channel to a release that is published; return where it points now.

    Raises:
        GateError: the release's gate does not allow this channel.
        ConflictError: the channel points to a newer release, or another publisher was first.
        TrustError: a file is missing or has another size.
    """
    release = accepted.manifest.release
    row = Row(store, opener, release.line, channel)
    check_gate(accepted.manifest, channel)
    current = _current(row)
    check_not_older(row, release.version, current)
    if current and (current.version, current.manifest_sha256) == (release.version, accepted.digest):
        return current
    check_present(store, accepted.manifest)
    return row.append(accepted, signer=signer, current=current)


def rollback(
    store: Store,
    *,
    line: str,
    channel: Channel,
    signer: Signer,
    opener: Opener,
    now: datetime,
    to: int | None = None,
) -> PointerPredicate:
    """Point a channel back to an older release; return where it points now.

    Args:
        to: the release to go back to; without it, the one the channel pointed to before the current one.

    Raises:
        RegistryError: there is nothing to go back to.
        ConflictError: `to` is not older than where the channel points, or another publisher was first.
        GateError: the gate of that release does not allow this channel.
        TrustError: that release may not be used (any more), or a file is missing.
    """
    row = Row(store, opener, line, channel)
    moves = row.history()
    if not moves:
        raise RegistryError(f"{row.label} points nowhere yet", hint="publish or promote a release to it first")
    current = moves[-1]
    target = _before(moves, row) if to is None else to
    if target == current.version:
        return current
    if target > current.version:
        raise ConflictError(
            f"release {target} is newer than {current.version}, to which {row.label} points",
            hint="to go forward, use promote",
        )
    older = consume.fetch(store, opener=opener, line=line, seen=Seen(), now=now, version=target)
    check_gate(older.manifest, channel)
    check_present(store, older.manifest)
    return row.append(older, signer=signer, current=current, rollback=True)


def _current(row: Row) -> PointerPredicate | None:
    found = row.latest()
    return found[0] if found else None


def _before(moves: Iterable[PointerPredicate], row: Row) -> int:
    """Return the release below the current one, releases that were rolled back from left out."""
    stack: list[int] = []
    for move in moves:
        while move.rollback and stack and stack[-1] >= move.version:
            stack.pop()
        stack.append(move.version)
    if len(stack) < 2:
        raise RegistryError(
            f"{row.label} has no release before {stack[-1]}", hint="name one with --to, or publish a newer release"
        )
    return stack[-2]
