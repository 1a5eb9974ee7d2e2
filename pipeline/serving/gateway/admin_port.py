"""The admin port: a server of its own beside the gateway's, over mutual TLS.

Rules: a handshake takes certificates of the authority that have a role, whichever, so that one with another role is
answered and logged rather than cut off; it opens when the gateway has started, and closes before the gateway does.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.peers import listen, tls
from pipeline.peers.role import Role
from pipeline.serving.gateway.admin import PEER, Admin
from pipeline.serving.gateway.app import App
from pipeline.serving.gateway.gateway import Gateway
from pipeline.serving.gateway.overrides import FILE, Overrides

CALLERS = frozenset(Role)
_DRAIN_S = 1.0  # that requests get at the end: they take milliseconds
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where the admin port is, and with which certificate."""

    socket: socket.socket
    context: tls.Context


def context(folder: Path) -> tls.Context:
    """Return the context of an admin port; raises ToolError where the folder's files are unusable."""
    return tls.server_context(folder, CALLERS)


class AdminPort:
    """The running port."""

    def __init__(self, gateway: Gateway, app: App, place: Place) -> None:
        """Prepare a port; `app` answers what operators look at."""
        overrides = Overrides(gateway.fleet, gateway.parts.source.folder / FILE, gateway.parts.settings.policy)
        try:
            overrides.restore()
        except PipelineError as e:
            _log.warning("what operators changed is not in force: %s", e.message)
        self._place, self._app = place, Admin(gateway, overrides, app.others)

    def open(self, protocol: type[asyncio.Protocol]) -> None:
        """Take connections from now on; `protocol` speaks HTTP."""
        known = type("Known", (_Known, protocol), {})
        self._server = listen.server(self._app, self._place.context, _DRAIN_S, known)
        self._work = asyncio.create_task(self._server.serve(sockets=[self._place.socket]))

    async def close(self) -> None:
        """Take no more, and end."""
        self._server.should_exit = True
        await self._work


class _Known:
    """The part of a connection that tells the application whose it is."""

    scope: dict[str, Any]
    transport: asyncio.Transport

    def on_message_begin(self) -> None:
        super().on_message_begin()  # type: ignore[misc]
        self.scope["extensions"] = {PEER: self.transport.get_extra_info("peercert")}
