"""A port of nodes and gateways: plain on loopback, TLS outward.

Rules: without certificates this machine alone is spoken to, unless that is expressly given up; a port that is taken
is told of before anything is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Literal

import uvicorn

from pipeline.errors import CatalogError, ToolError

LOOPBACK = "127.0.0.1"
ANYWHERE = "0.0.0.0"  # noqa: S104 - only with mutual TLS, or where the user says so
BACKLOG = 256


def bind(host: str, port: int, *, tls: bool, insecure: bool, option: str = "--tls") -> socket.socket:
    """Return a socket that listens; `option` is what would give it certificates.

    Raises:
        CatalogError: it would be open to others without certificates.
        ToolError: the port is taken, or the host is not this machine's.
    """
    if not (tls or insecure or _is_loopback(host)):
        raise CatalogError(
            f"{host} is open to others, and there are no certificates",
            hint=f"give {option} DIR (edge-release certs makes them), or --insecure where the network is protected",
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(BACKLOG)
    except OSError as e:
        found.close()
        raise ToolError(f"cannot listen on {host}:{port}: {e.strerror}", hint="give another --host or --port") from e
    return found


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server(
    app: Any,
    context: ssl.SSLContext | None,
    drain_s: float,
    protocol: type[asyncio.Protocol] | Literal["auto"] = "auto",
) -> Server:
    """Return a server for an ASGI application, not started.

    Args:
        drain_s: seconds that open requests may still take when it ends.
        protocol: what speaks HTTP, where that is not uvicorn's own.
    """
    config = uvicorn.Config(
        app, http=protocol, interface="asgi3", lifespan="off", log_level="critical", access_log=False,
        server_header=False, date_header=False, backlog=BACKLOG, timeout_graceful_shutdown=int(drain_s),
        h11_max_incomplete_event_size=65536,
    )  # fmt: skip
    config.load()
    config.ssl = context
    return Server(config)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
