"""What a node needs of the program that serves its variant."""

from __future__ import annotations

from typing import Protocol

from pipeline.peers.status import Pool
from pipeline.ports.beside import Program
from pipeline.serving.node.engine import Address, Dialect, Engine
from pipeline.serving.node.releases import Held
from pipeline.serving.node.sizing import Sizing


class Backend(Protocol):
    """A kind of server: how it is started, and whether it answers right. All methods raise PipelineError."""

    @property
    def pool(self) -> Pool:
        """The pool it serves in."""
        ...

    @property
    def dialect(self) -> Dialect:
        """How it is asked."""
        ...

    def size(self, held: Held) -> Sizing:
        """Return how to start it on this machine."""
        ...

    async def launch(self, held: Held, sizing: Sizing) -> tuple[Program, Address]:
        """Start it, and return it with its address."""
        ...

    async def check(self, engine: Engine, held: Held) -> str | None:
        """Return None where it answers the golden prompts right, else the reason why not."""
        ...
