"""The ASGI application of the admin port: the policy, endpoints out and in, and what operators look at.

Rules: it stands behind mutual TLS, so there is a certificate of the authority with a role; `/admin/…` is the
controller's alone; every request to it is logged with the certificate's subject, whatever comes of it. What shows no
client's data (`/metrics`, `/status`) is for every role.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic_core import from_json, to_json

from pipeline.errors import PipelineError
from pipeline.peers import asgi
from pipeline.peers.role import Role, roles
from pipeline.serving.gateway import wire
from pipeline.serving.gateway.app import OPERATORS
from pipeline.serving.gateway.gateway import Gateway
from pipeline.serving.gateway.overrides import Overrides
from pipeline.serving.gateway.overview import servers
from pipeline.serving.gateway.problems import Problem

PEER = "edge_release.peer"  # the extension with the certificate of whoever is connected, as `ssl` decodes it
_log = logging.getLogger(__name__)


@dataclass
class _Line:
    """What is logged of one request."""

    admin: str
    method: str
    path: str
    status: int = 0
    did: str = ""

    def text(self) -> str:
        return to_json(asdict(self)).decode()


@dataclass(frozen=True)
class Admin:
    """The application; `others` answers what operators look at."""

    gateway: Gateway
    overrides: Overrides
    others: Callable[[asgi.Scope, asgi.Receive, asgi.Send], Awaitable[None]]

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] in OPERATORS:
            await self.others(scope, receive, send)
            return
        line = _Line(_subject(scope["extensions"][PEER]), scope["method"], scope["path"][:80])
        try:
            body = await self._done(scope, receive, line)
            line.status = 200
        except Problem as e:
            body, line.status, line.did = e.body(), e.status, e.message
        except wire.ClientLeftError:
            line.did = "left"
            return
        finally:
            _log.warning("%s", line.text())
        await asgi.answer(send, line.status, body)

    async def _done(self, scope: asgi.Scope, receive: asgi.Receive, line: _Line) -> bytes:
        """Do what is asked; return the answer. Raises Problem and ClientLeftError."""
        if Role.CONTROLLER not in roles(scope["extensions"][PEER]):
            message = f"the certificate of {line.admin} has not the role {Role.CONTROLLER}"
            raise Problem(403, "not_allowed", message, "permission_error")
        found = {path for path, _ in _ROUTES}
        if scope["path"] not in found:
            raise Problem(404, "not_found", f"there are {', '.join(sorted(found))}")
        do = _ROUTES.get((scope["path"], scope["method"]))
        if do is None:
            raise Problem(405, "method_not_allowed", f"{scope['path']} takes no {scope['method'][:16]}")
        headers, limits = dict(scope["headers"]), self.gateway.parts.settings.limits
        wire.check_headers(scope["headers"], limits)
        body = await wire.read_body(receive, headers, limits, scope[wire.CONNECTED])
        try:
            document, line.did = await do(self, body)
        except PipelineError as e:
            raise Problem(500, "not_kept", f"nothing was changed: {e.message}", "server_error") from e
        return to_json(document)

    async def _policy(self, _: bytes) -> tuple[Any, str]:
        return self.gateway.fleet.policy, ""

    async def _push(self, body: bytes) -> tuple[Any, str]:
        did = await self.overrides.push(body)
        return self.gateway.fleet.policy, did

    async def _drain(self, body: bytes) -> tuple[Any, str]:
        return await self._turn(body, drained=True)

    async def _undrain(self, body: bytes) -> tuple[Any, str]:
        return await self._turn(body, drained=False)

    async def _turn(self, body: bytes, *, drained: bool) -> tuple[Any, str]:
        name = _named(body)
        did = await self.overrides.drain(name, drained=drained)
        return {"endpoint": name, "drained": drained}, did

    async def _endpoints(self, _: bytes) -> tuple[Any, str]:
        told = [
            {"url": member.entry.base, "pool": member.entry.pool, **asdict(server)}
            for member, server in servers(self.gateway, self.gateway.parts.clock())
        ]
        return {"endpoints": told}, ""


_ROUTES: Mapping[tuple[str, str], Callable[[Admin, bytes], Awaitable[tuple[Any, str]]]] = {
    ("/admin/policy", "GET"): Admin._policy,
    ("/admin/policy", "PUT"): Admin._push,
    ("/admin/drain", "POST"): Admin._drain,
    ("/admin/undrain", "POST"): Admin._undrain,
    ("/admin/endpoints", "GET"): Admin._endpoints,
}


def _named(body: bytes) -> str:
    try:
        document = from_json(body)
    except ValueError as e:
        raise Problem(400, "invalid_json", f"no JSON: {e}") from e
    match document:
        case {"endpoint": str(name)} if len(document) == 1:
            return name
    raise Problem(400, "invalid_value", 'the body is {"endpoint": "NAME"}', param="endpoint")


def _subject(certificate: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for names in certificate.get("subject", ()) for key, value in names)
