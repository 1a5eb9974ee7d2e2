"""Mutual TLS from a folder of three files: `ca.pem`, `cert.pem`, `key.pem`; and a server's side alone, for the public.

Rules: TLS 1.3 alone; both sides show a certificate of the folder's authority; the role in it is checked within the
handshake, so that no library in between can forget to; sessions are not resumed, so every connection is checked. The
public shows none, may speak TLS 1.2, and finds the server's authority in its own store: `ca.pem` is not looked at.

Certificates change in place: `Reloader.check` loads new files into the contexts that are in use. Connections go on as
they are, new ones get the new certificate. Files that do not belong together leave the old ones in use and are told of
once. A new authority is trusted beside the old one; to withdraw one, start again.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from pipeline.errors import ToolError
from pipeline.peers.role import Role, roles

CA_FILE = "ca.pem"
CERT_FILE = "cert.pem"
KEY_FILE = "key.pem"
MAX_BYTES = 1 << 20
_HINT = f"the folder must hold {CERT_FILE}, {KEY_FILE} and, for mutual TLS, {CA_FILE}: edge-release certs makes them"

Clock = Callable[[], datetime]


class _Checked:
    """The part of a connection that looks at the peer's role once its certificate was verified."""

    context: Any
    getpeercert: Any

    def _check_role(self) -> None:
        allowed: frozenset[Role] = self.context.allowed
        if not roles(self.getpeercert()) & allowed:
            raise ssl.SSLCertVerificationError(
                f"the peer's certificate has none of the roles {', '.join(sorted(allowed))}"
            )


class _CheckedObject(_Checked, ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        self._check_role()


class _CheckedSocket(_Checked, ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        self._check_role()


class Context(ssl.SSLContext):
    """A context whose handshakes fail unless the peer has one of the roles `allowed`."""

    allowed: frozenset[Role] = frozenset()
    sslobject_class = _CheckedObject
    sslsocket_class = _CheckedSocket


@dataclass(frozen=True)
class Material:
    """The bytes of the files, read together; `ca` is None where nobody's certificate is checked by it."""

    ca: bytes | None
    cert: bytes
    key: bytes = field(repr=False)


def server_context(folder: Path, callers: Collection[Role]) -> Context:
    """Return the context of a server that only these roles may call; raises ToolError where the files are unusable."""
    return _context(ssl.PROTOCOL_TLS_SERVER, folder, callers)


def client_context(folder: Path, servers: Collection[Role]) -> Context:
    """Return the context of a client that calls only these roles; host names are checked. Raises ToolError."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, folder, servers)


def public_context(folder: Path) -> ssl.SSLContext:
    """Return the context of a server that anyone may call, without a certificate; raises ToolError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, read(folder, mutual=False))
    return context


def _context(protocol: int, folder: Path, allowed: Collection[Role]) -> Context:
    context = Context(protocol)
    context.allowed = frozenset(allowed)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    _load(context, read(folder))
    return context


def read(folder: Path, *, mutual: bool = True) -> Material:
    """Return the files of a folder; raises ToolError where one is missing."""
    ca = _bytes(folder / CA_FILE) if mutual else None
    return Material(ca, _bytes(folder / CERT_FILE), _bytes(folder / KEY_FILE))


def check(material: Material, now: datetime) -> None:
    """Raise ToolError unless the files belong together and may be used now."""
    try:
        authorities = x509.load_pem_x509_certificates(material.ca) if material.ca is not None else None
        certificate = x509.load_pem_x509_certificates(material.cert)[0]
        key = load_pem_private_key(material.key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise ToolError(f"not PEM as it must be: {e}", hint=_HINT) from e
    if key.public_key() != certificate.public_key():
        raise ToolError(f"{KEY_FILE} is not the key of {CERT_FILE}", hint=_HINT)
    if authorities is not None and not any(_issued(certificate, authority) for authority in authorities):
        raise ToolError(f"{CERT_FILE} is not from the authority in {CA_FILE}", hint=_HINT)
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        until = certificate.not_valid_after_utc
        raise ToolError(f"{CERT_FILE} is not valid now, but until {until:%Y-%m-%d %H:%M} UTC", hint="issue a new one")


class Reloader:
    """Keeps contexts in use at what a folder holds; call `check` every few seconds."""

    def __init__(
        self, folder: Path, contexts: Sequence[ssl.SSLContext], clock: Clock = lambda: datetime.now(UTC)
    ) -> None:
        """Begin with the files as they are now, which the contexts have loaded."""
        self._folder, self._contexts, self._clock = folder, contexts, clock
        self._mutual = any(context.verify_mode is ssl.CERT_REQUIRED for context in contexts)
        self._loaded = self._looked_at = _signature(folder)

    def check(self) -> str | None:
        """Load what changed, and say what happened in a line; None where nothing did.

        Files are three and change one after another: they are loaded when they stood still from one check to the next.
        """
        found = _signature(self._folder)
        settled, self._looked_at = found == self._looked_at, found
        if found == self._loaded or not settled:
            return None
        self._loaded = found
        try:
            material = read(self._folder, mutual=self._mutual)
            check(material, self._clock())
        except ToolError as e:
            return f"new certificate refused, the old one stays: {e.message}"
        for context in self._contexts:
            _load(context, material)
        return "new certificate loaded"


def _load(context: ssl.SSLContext, material: Material) -> None:
    # From memory, because a file could change between the look at it and its use.
    handle = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(handle), "wb") as f:
            f.write(material.cert + b"\n" + material.key)
        context.load_cert_chain(f"/proc/self/fd/{handle}")
        if material.ca is not None:
            context.load_verify_locations(cadata=material.ca.decode("ascii"))
    except (ssl.SSLError, ValueError) as e:
        raise ToolError(f"the certificate cannot be used: {e}", hint=_HINT) from e
    finally:
        os.close(handle)


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as f:
            return f.read(MAX_BYTES)
    except OSError as e:
        raise ToolError(f"{path}: {e.strerror}", hint=_HINT) from e


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _signature(folder: Path) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes when a file does, a link to it included (Kubernetes swaps the link of a whole folder)."""
    found: list[tuple[int, int, int] | None] = []
    for name in (CA_FILE, CERT_FILE, KEY_FILE):
        try:
            info = (folder / name).stat()
            found.append((info.st_ino, info.st_size, info.st_mtime_ns))
        except OSError:
            found.append(None)
    return tuple(found)
