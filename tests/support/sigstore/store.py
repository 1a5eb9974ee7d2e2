"""Keys and certificates of the instance, kept in its folder so that its root of trust outlives a restart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey


class Store:
    """One folder with `<name>.key` and `<name>.crt` files, made at first use."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)

    def key(self, name: str) -> Key:
        path = self.home / f"{name}.key"
        if not path.exists():
            path.touch(mode=0o600)
            made = ec.generate_private_key(ec.SECP256R1())
            path.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key = load_pem_private_key(path.read_bytes(), password=None)
        assert isinstance(key, Key)
        return key

    def certificate(self, name: str, make: Callable[[], x509.Certificate]) -> x509.Certificate:
        path = self.home / f"{name}.crt"
        if not path.exists():
            path.write_bytes(make().public_bytes(Encoding.PEM))
        return x509.load_pem_x509_certificate(path.read_bytes())


def spki(key: Key) -> bytes:
    """Return the public key as DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_id(key: Key) -> bytes:
    """Return the name logs give to a key: the digest of its DER."""
    return hashlib.sha256(spki(key)).digest()


def sign(key: Key, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "private sigstore"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def authority(subject: str, key: Key, issuer: str, issuer_key: Key, *, path_length: int) -> x509.CertificateBuilder:
    """Return a CA certificate to be signed by `issuer_key`."""
    return _builder(name(subject), key.public_key(), name(issuer), issuer_key, _ten_years(), is_ca=True).add_extension(
        x509.BasicConstraints(ca=True, path_length=path_length), critical=True
    )


def leaf(
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: Key,
    valid: tuple[datetime, datetime] | None = None,
) -> x509.CertificateBuilder:
    """Return a certificate that may sign data, to be signed by `issuer_key`; valid for ten years unless told."""
    return _builder(subject, public, issuer, issuer_key, valid or _ten_years(), is_ca=False)


def _ten_years() -> tuple[datetime, datetime]:
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    return start, start + timedelta(days=3650)


def _builder(
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: Key,
    valid: tuple[datetime, datetime],
    *,
    is_ca: bool,
) -> x509.CertificateBuilder:
    usage = x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
