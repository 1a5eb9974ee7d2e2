"""The timestamp authority (RFC 3161); the answers are made by OpenSSL's `ts`."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.support.sigstore.store import Store, authority, leaf, name

_CONFIG = """\
[tsa]
default_tsa = private
[private]
serial = {work}/serial
signer_cert = {home}/tsa.crt
signer_key = {home}/tsa.key
signer_digest = sha256
default_policy = 1.3.6.1.4.1.57264.2
digests = sha256, sha384, sha512
accuracy = secs:1
ess_cert_id_alg = sha256
"""


class TimestampAuthority:
    """Signs the time at which it saw a signature."""

    def __init__(self, store: Store) -> None:
        self._home = store.home
        root, key = store.key("tsa-root"), store.key("tsa")
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
        self.root = store.certificate(
            "tsa-root", lambda: authority("tsa root", root, "tsa root", root, path_length=0).sign(root, hashes.SHA256())
        )
        self.certificate = store.certificate(
            "tsa",
            lambda: (
                leaf(name("tsa"), key.public_key(), name("tsa root"), root)
                .add_extension(usage, critical=True)
                .sign(root, hashes.SHA256())
            ),
        )

    def answer(self, request: bytes) -> bytes:
        """Return the reply to a timestamp request."""
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            (work / "request").write_bytes(request)
            (work / "serial").write_text("01")
            (work / "config").write_text(_CONFIG.format(work=work, home=self._home))
            command = ["openssl", "ts", "-reply", "-config", "config", "-queryfile", "request", "-out", "reply"]
            subprocess.run(command, cwd=work, check=True, capture_output=True)
            return (work / "reply").read_bytes()
