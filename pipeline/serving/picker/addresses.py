"""Where endpoints are, as data planes name them: `10.0.0.5:8080`, `[fd00::5]:8080`.

Rules: a name that no longer resolves keeps its last address; the first address of a name counts, which must be the
data plane's too: both ask the same resolver.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pipeline.serving.gateway.settings import EndpointEntry

_EVERY_S = 5.0  # Envoy's own default for names


@dataclass
class Addresses:
    """Addresses by the names of endpoints."""

    entries: Sequence[EndpointEntry]
    found: dict[str, str] = field(default_factory=dict)

    async def watch(self) -> None:
        """Resolve every endpoint's host, for ever."""
        while True:
            await asyncio.gather(*map(self._look, self.entries))
            await asyncio.sleep(_EVERY_S)

    async def _look(self, entry: EndpointEntry) -> None:
        parts = urlsplit(entry.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            infos = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except OSError:
            return
        self.found[entry.name] = _text(infos)


def _text(infos: Sequence[tuple[object, ...]]) -> str:
    """Return the first IPv4 address, or else the first one."""
    family, *_, place = min(infos, key=lambda i: i[0] != socket.AF_INET)
    host, port = place[:2]  # type: ignore[index]
    return f"{host}:{port}" if family == socket.AF_INET else f"[{host}]:{port}"
