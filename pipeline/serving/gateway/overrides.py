"""What operators changed while the gateway runs: the policy, and endpoints that were taken out.

Rules: a change is on the disk before it is in force, and in force over restarts; it is made whole or not at all; a
policy is taken only with a higher version than the one in force, so that pushes that overtake each other leave the
newest, and settings with a higher version than the last push end it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_core import from_json

from pipeline.catalog.document import Document, check
from pipeline.errors import CatalogError
from pipeline.peers.policy import Policy
from pipeline.ports import files
from pipeline.serving.gateway.fleet import Fleet
from pipeline.serving.gateway.problems import Problem

FILE = "overrides.json"


class Kept(Document):
    """The file; names of endpoints that the settings no longer have mean nothing."""

    schema_version: Literal[1] = 1
    policy: Policy | None = None
    drained: list[str] = Field(default_factory=list)


@dataclass
class Overrides:
    """A fleet's overrides and their file; `settings` is the policy of the settings."""

    fleet: Fleet
    path: Path
    settings: Policy
    kept: Kept = field(default_factory=Kept)
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)

    def restore(self) -> None:
        """Put in force what the file says, if there is one; raises CatalogError where it cannot be read."""
        if self.path.exists():
            self._use(files.load(self.path, _parse))

    async def push(self, data: bytes) -> str:
        """Put a policy in force, written in JSON; return what happened, which is nothing where it is in force already.

        Raises:
            Problem: 400 with the reasons where it is none, 409 where its version is not higher.
            StageError: it cannot be kept.
        """
        try:
            policy = check(from_json(data), Policy, "policy")
        except CatalogError as e:
            raise Problem(400, "invalid_policy", e.message) from e
        except ValueError as e:
            raise Problem(400, "invalid_json", f"no JSON: {e}") from e
        async with self._one:
            now = self.fleet.policy
            if policy == now:
                return f"policy {now.version} is in force already"
            if policy.version <= now.version:
                message = f"policy {now.version} is in force; a new one needs a higher version than {policy.version}"
                raise Problem(409, "policy_not_newer", message)
            await self._keep(self.kept.model_copy(update={"policy": policy}))
            return f"policy {policy.version} instead of {now.version}"

    async def drain(self, name: str, *, drained: bool) -> str:
        """Take an endpoint out, or back in; return what happened.

        Raises:
            Problem: 404 where the settings have no such endpoint.
            StageError: it cannot be kept.
        """
        if name not in self.fleet.members:
            known = ", ".join(self.fleet.members)
            raise Problem(404, "unknown_endpoint", f"no endpoint {name[:64]!r}; there are {known}", param="endpoint")
        async with self._one:
            names = {n for n, m in self.fleet.members.items() if m.drained} - {name} | ({name} if drained else set())
            await self._keep(self.kept.model_copy(update={"drained": sorted(names)}))
        return f"{name} is {'out' if drained else 'in'}"

    async def _keep(self, kept: Kept) -> None:
        await asyncio.to_thread(files.write, self.path, kept.model_dump_json(indent=1).encode(), mode=0o600)
        self._use(kept)

    def _use(self, kept: Kept) -> None:
        self.kept, pushed = kept, kept.policy
        self.fleet.policy = pushed if pushed and pushed.version > self.settings.version else self.settings
        for member in self.fleet.members.values():
            member.drained, member.changed = member.name in kept.drained, True


def _parse(text: str, name: str) -> Kept:
    try:
        return check(from_json(text), Kept, name)
    except ValueError as e:
        raise CatalogError(f"{name}: no JSON: {e}", hint="remove it: what operators changed is forgotten then") from e
