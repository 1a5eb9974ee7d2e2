"""Where gateways are now: an entry of the settings each, or one for every address that its name has.

Rules: names are looked up anew before every look; where that fails the addresses of last time stay, and who is gone
does not answer. A gateway of many is named by its address, and shows the certificate of the name they share.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pipeline.control.settings import GatewayEntry

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass
class Gateways:
    """The gateways of the settings."""

    settings: Sequence[GatewayEntry]
    resolve: Resolve
    _found: dict[str, tuple[GatewayEntry, ...]] = field(default_factory=dict)

    async def entries(self) -> list[GatewayEntry]:
        """Return every gateway there is now."""
        return [one for each in await asyncio.gather(*map(self._each, self.settings)) for one in each]

    def named(self, name: str) -> GatewayEntry | None:
        """Return a gateway that was there at the last look."""
        return next((one for each in self._found.values() for one in each if one.name == name), None)

    async def _each(self, entry: GatewayEntry) -> tuple[GatewayEntry, ...]:
        if not entry.every:
            self._found[entry.name] = (entry,)
            return (entry,)
        parts = urlsplit(entry.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            addresses = await self.resolve(parts.hostname or "", port)
        except OSError:
            return self._found.get(entry.name, ())
        self._found[entry.name] = tuple(_at(entry, parts.scheme, address, port) for address in sorted(addresses))
        return self._found[entry.name]


async def resolved(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a name; raises OSError where it has none."""
    rows = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return sorted({str(row[4][0]) for row in rows})


def _at(entry: GatewayEntry, scheme: str, address: str, port: int) -> GatewayEntry:
    host = f"[{address}]" if ":" in address else address
    named = entry.tls_name or urlsplit(entry.url).hostname
    changed = {"name": f"{entry.name}-{address}", "url": f"{scheme}://{host}:{port}", "tls_name": named, "every": False}
    return entry.model_copy(update=changed)
