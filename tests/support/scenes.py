"""A publisher, a registry that may go away, and a gateway that reads from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.catalog.names import Channel
from pipeline.errors import RegistryError
from pipeline.registry import channels
from pipeline.registry.folder import FolderStore
from pipeline.registry.publish import publish
from pipeline.registry.store import Store
from pipeline.serving.gateway.release import Held, Source, refresh
from tests.support.releases import LINE, NOW, Publisher


@dataclass
class Scene:
    """One release line on its way to one gateway; `gone` says that the registry cannot be reached."""

    root: Path
    publisher: Publisher = field(default_factory=Publisher)
    registry: str = "registry"
    gone: bool = False
    now: datetime = NOW

    @property
    def store(self) -> FolderStore:
        return FolderStore(self.root / self.registry)

    @property
    def source(self) -> Source:
        return Source(
            store=self._open,
            opener=self.publisher.opener,
            line=LINE,
            channel=Channel.DEV,
            seen=self.root / "seen.json",
            folder=self.root / "gateway",
        )

    def _open(self) -> Store:
        if self.gone:
            raise RegistryError("the registry is gone", hint="wait")
        return self.store

    def publish(self, version: int, by: Publisher | None = None, **release: Any) -> None:
        """Publish a release to the channel."""
        publisher = by or self.publisher
        signed = publisher.release(self.root / f"release-{version}", version, **release)
        publish(
            self.store,
            signed,
            channel=Channel.DEV,
            signer=publisher.sign,
            opener=publisher.opener,
            now=self.now,
        )

    def rollback(self) -> None:
        """Point the channel back."""
        by = self.publisher
        channels.rollback(self.store, line=LINE, channel=Channel.DEV, signer=by.sign, opener=by.opener, now=self.now)

    def held(self, held: Held | None = None, now: datetime | None = None) -> Held:
        """Return what the gateway holds after a look at the channel; a fresh one where none is given."""
        return refresh(held or Held(), self.source, now or self.now)
