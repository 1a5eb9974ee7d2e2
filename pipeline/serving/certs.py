"""A certificate authority for labs: one key that issues short-lived certificates for nodes, gateways and clients.

    DIR/ca.pem, DIR/ca-key.pem       the authority; keep its key off the machines that serve
    DIR/NAME/ca.pem, cert.pem, key.pem     what one machine gets, and `--tls` takes

Rules: EC P-256; a certificate names its hosts, its use and its role; keys are readable by their owner alone; nothing is
overwritten unless that is asked for. Where there is an issuer already (cert-manager, SPIRE), use that instead.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pipeline.errors import CatalogError, StageError
from pipeline.peers.role import Role
from pipeline.peers.tls import CA_FILE, CERT_FILE, KEY_FILE
from pipeline.ports import files

CA_KEY_FILE = "ca-key.pem"
CA_DAYS = 365
DAYS = 14
EARLIER = timedelta(minutes=5)  # for clocks that run behind
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def new_authority(now: datetime, days: int = CA_DAYS) -> Pair:
    """Return a fresh authority, which may issue certificates but no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("edge-release lab authority")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = (
        _builder(name, name, key, now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return Pair(builder.sign(key, hashes.SHA256()), key)


def issue(
    authority: Pair, name: str, *, hosts: Sequence[str], roles: Collection[Role], now: datetime, days: int = DAYS
) -> Pair:
    """Return a certificate for a machine; raises CatalogError for a name or host that cannot stand in one."""
    if not _NAME.fullmatch(name):
        raise CatalogError(f"{name!r} cannot name a certificate", hint="use letters, digits, dots and dashes")
    key = ec.generate_private_key(ec.SECP256R1())
    names = [*map(_host, hosts), *(x509.UniformResourceIdentifier(role.uri) for role in sorted(roles))]
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH] + [ExtendedKeyUsageOID.SERVER_AUTH] * bool(hosts)
    public = authority.certificate.public_key()
    builder = (
        _builder(_name(name), authority.certificate.subject, key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)  # type: ignore[arg-type]
    )
    return Pair(builder.sign(authority.key, hashes.SHA256()), key)


def write_authority(out: Path, authority: Pair, *, force: bool = False) -> None:
    """Write an authority into a folder; raises StageError where there is one and `force` does not say otherwise."""
    what = {out / CA_KEY_FILE: authority.key_pem, out / CA_FILE: authority.pem}
    _write(what, force=force, hint="--force replaces it; what it issued is worth nothing then")


def read_authority(out: Path) -> Pair:
    """Return the authority in a folder; raises StageError where there is none."""
    try:
        key = load_pem_private_key((out / CA_KEY_FILE).read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((out / CA_FILE).read_bytes())
    except (OSError, ValueError, TypeError) as e:
        raise StageError(f"{out}: no authority there: {e}", hint=f"edge-release certs --out {out} ca") from e
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StageError(f"{out / CA_KEY_FILE} is no EC key", hint=f"edge-release certs --out {out} ca --force")
    return Pair(certificate, key)


def write_issued(folder: Path, authority: Pair, issued: Pair, *, force: bool = False) -> None:
    """Write what one machine gets into its folder; raises StageError as `write_authority`."""
    contents = {CA_FILE: authority.pem, KEY_FILE: issued.key_pem, CERT_FILE: issued.pem}
    what = {folder / name: data for name, data in contents.items()}
    _write(what, force=force, hint="--force renews it")


def _write(contents: dict[Path, bytes], *, force: bool, hint: str) -> None:
    there = [path for path in contents if path.exists() or path.is_symlink()]
    if there and not force:
        raise StageError(f"{there[0]} exists", hint=hint)
    for path, data in contents.items():
        files.write(path, data, mode=0o600 if path.name in {CA_KEY_FILE, KEY_FILE} else 0o644)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host):
            raise CatalogError(f"{host!r} is no host", hint="give a name or an address, without a port") from None
        return x509.DNSName(host)
