"""A channel's row of signed pointers: read the last, read all, append one.

Rules: a pointer is never changed; whoever creates the next serial moved the channel, and everyone else is told who did.
Every pointer is verified before anything in it is used.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.catalog.names import Channel
from pipeline.errors import ConflictError, Refusal, TrustError
from pipeline.manifest import pointer, rules
from pipeline.manifest.dsse import Opener
from pipeline.manifest.pointer import PointerPredicate
from pipeline.manifest.rules import Accepted, Seen
from pipeline.ports.keys import Signer
from pipeline.registry import layout
from pipeline.registry.store import Store

_NOTHING = Seen()


@dataclass(frozen=True)
class Row:
    """One channel of one line in a registry, and who may speak for it."""

    store: Store
    opener: Opener
    line: str
    channel: Channel

    @property
    def label(self) -> str:
        return f"{self.line}/{self.channel}"

    def latest(self, seen: Seen = _NOTHING) -> tuple[PointerPredicate, Seen] | None:
        """Return where the channel points and what to remember of it; None where it has never pointed anywhere."""
        serials = self._serials(after=seen.serials.get(self.channel, 0) - 1) or self._serials()
        return self._read(serials[-1], seen) if serials else None

    def rolled_back(self, seen: Seen) -> bool:
        """Return whether the channel went back by any of the moves after the last one seen."""
        after = seen.serials.get(self.channel, 0)
        return any(self._read(serial)[0].rollback for serial in self._serials(after))

    def history(self) -> list[PointerPredicate]:
        """Return every move of the channel, oldest first."""
        return [self._read(serial)[0] for serial in self._serials()]

    def append(
        self, release: Accepted, *, signer: Signer, current: PointerPredicate | None, rollback: bool = False
    ) -> PointerPredicate:
        """Point the channel to a release.

        Args:
            current: where the caller found the channel pointing when it decided to move it.

        Raises:
            ConflictError: another publisher moved it meanwhile, elsewhere.
        """
        name = release.manifest.release
        wanted = PointerPredicate(
            line=self.line,
            channel=self.channel,
            serial=current.serial + 1 if current else 1,
            version=name.version,
            tag=name.tag,
            manifest_sha256=release.digest,
            previous=current.version if current else None,
            rollback=rollback,
        )
        bundle = signer(pointer.build(wanted).encode())
        self._accept(bundle, wanted.serial)
        try:
            self.store.create(self._name(wanted.serial), bundle)
        except ConflictError as e:
            return self._same_as_winner(wanted, e)
        return wanted

    def _same_as_winner(self, wanted: PointerPredicate, error: ConflictError) -> PointerPredicate:
        winner = self._read(wanted.serial)[0]
        if winner == wanted:
            return winner
        raise ConflictError(
            f"another publisher moved {self.label} to release {winner.version} first",
            hint="the release itself is published; look at the channel and, if it still should move, run this again",
        ) from error

    def _serials(self, after: int = 0) -> list[int]:
        prefix = layout.row(self.line, self.channel)
        return layout.numbers(self.store.names(prefix, self._name(after) if after > 0 else ""), prefix)

    def _read(self, serial: int, seen: Seen = _NOTHING) -> tuple[PointerPredicate, Seen]:
        bundle = self.store.read(self._name(serial), layout.MAX_POINTER)
        if bundle is None:
            raise TrustError(Refusal.MISSING_FILE, f"move {serial} of {self.label} has vanished")
        return self._accept(bundle, serial, seen)

    def _accept(self, bundle: bytes, serial: int, seen: Seen = _NOTHING) -> tuple[PointerPredicate, Seen]:
        return rules.accept_pointer(
            bundle, opener=self.opener, line=self.line, channel=self.channel, serial=serial, seen=seen
        )

    def _name(self, serial: int) -> str:
        return layout.pointer(self.line, self.channel, serial)
