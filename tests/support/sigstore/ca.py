"""The certificate authority (Fulcio) and the certificate transparency log it feeds.

Sources: https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md for the extensions, RFC 6962 for the SCT.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from tests.support.sigstore.oidc import Claims
from tests.support.sigstore.store import Store, authority, key_id, leaf, name, sign

LIFETIME = timedelta(minutes=10)
_HUB = "https://github.com/"
_FULCIO = "1.3.6.1.4.1.57264.1"
_SCT_LIST = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")

# The last arc of a Fulcio extension: the claim it holds and, for the second kind, what stands in front of it.
_RAW = {1: "iss", 2: "event_name", 3: "sha", 4: "workflow", 5: "repository", 6: "ref"}
_UTF8 = {
    8: ("iss", ""),
    9: ("job_workflow_ref", _HUB),
    10: ("job_workflow_sha", ""),
    11: ("runner_environment", ""),
    12: ("repository", _HUB),
    13: ("sha", ""),
    14: ("ref", ""),
    15: ("repository_id", ""),
    16: ("repository_owner", _HUB),
    17: ("repository_owner_id", ""),
    18: ("workflow_ref", _HUB),
    19: ("workflow_sha", ""),
    20: ("event_name", ""),
    22: ("repository_visibility", ""),
}


class Authority:
    """Gives a ten-minute certificate to whoever proves an identity; `shift` moves its clock."""

    def __init__(self, store: Store) -> None:
        root, self.key, self.ct_key = store.key("root"), store.key("fulcio"), store.key("ctlog")
        self.shift = timedelta()
        self.root = store.certificate(
            "root", lambda: authority("root", root, "root", root, path_length=1).sign(root, hashes.SHA256())
        )
        self.certificate = store.certificate(
            "fulcio",
            lambda: (
                authority("fulcio", self.key, "root", root, path_length=0)
                .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
                .sign(root, hashes.SHA256())
            ),
        )

    def issue(self, csr_pem: bytes, claims: Claims, names: list[x509.GeneralName] | None = None) -> list[str]:
        """Return the certificate chain, leaf first, as PEM; `names` stand instead of the one in the claims."""
        csr = x509.load_pem_x509_csr(csr_pem)
        public = csr.public_key()
        if not csr.is_signature_valid or not isinstance(public, ec.EllipticCurvePublicKey):
            raise ValueError("the request does not prove possession of an EC key")
        start = datetime.now(UTC).replace(microsecond=0) + self.shift
        builder = leaf(x509.Name([]), public, name("fulcio"), self.key, (start, start + LIFETIME)).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False
        )
        builder = builder.add_extension(x509.SubjectAlternativeName(names or [_subject(claims)]), critical=True)
        for extension in _extensions(claims):
            builder = builder.add_extension(extension, critical=False)
        precertificate = builder.sign(self.key, hashes.SHA256())
        sct = x509.UnrecognizedExtension(_SCT_LIST, self._sct_list(precertificate.tbs_certificate_bytes))
        issued = builder.add_extension(sct, critical=False).sign(self.key, hashes.SHA256())
        return [c.public_bytes(Encoding.PEM).decode() for c in (issued, self.certificate, self.root)]

    def _sct_list(self, precertificate: bytes) -> bytes:
        milliseconds = int(datetime.now(UTC).timestamp() * 1000)
        length = len(precertificate).to_bytes(3, "big")
        entry = struct.pack("!BBQH32s", 0, 0, milliseconds, 1, key_id(self.key)) + length + precertificate + b"\0\0"
        signature = sign(self.ct_key, entry)
        sct = struct.pack("!B32sQHBBH", 0, key_id(self.ct_key), milliseconds, 0, 4, 3, len(signature)) + signature
        return _der(0x04, struct.pack("!HH", len(sct) + 2, len(sct)) + sct)


def _subject(claims: Claims) -> x509.GeneralName:
    if "job_workflow_ref" in claims:
        return x509.UniformResourceIdentifier(_HUB + claims["job_workflow_ref"])
    if "email" in claims:
        return x509.RFC822Name(claims["email"])
    return x509.UniformResourceIdentifier(claims["sub"])


def _extensions(claims: Claims) -> list[x509.UnrecognizedExtension]:
    raw = [(arc, claims[claim].encode()) for arc, claim in _RAW.items() if claim in claims]
    text = [(arc, before + claims[claim]) for arc, (claim, before) in _UTF8.items() if claim in claims]
    if "run_id" in claims:
        run = f"{_HUB}{claims['repository']}/actions/runs/{claims['run_id']}/attempts/{claims['run_attempt']}"
        text.append((21, run))
    values = raw + [(arc, _der(0x0C, value.encode())) for arc, value in text]
    return [x509.UnrecognizedExtension(ObjectIdentifier(f"{_FULCIO}.{arc}"), value) for arc, value in values]


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(digits)]) + digits + content
