"""The transparency log (Rekor), with both of its interfaces over one Merkle tree.

Sources: RFC 6962 for the tree, https://github.com/transparency-dev/formats/blob/main/log/README.md for checkpoints,
https://github.com/sigstore/rekor/tree/main/pkg/types for version 1, https://github.com/sigstore/rekor-tiles for 2.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from tests.support.sigstore.store import Store, key_id, sign

ORIGIN = "rekor.private"


@dataclass(frozen=True)
class Entry:
    """One entry with the proof that the tree of `size` leaves holds it."""

    body: bytes
    index: int
    size: int
    root: bytes
    path: list[bytes]
    checkpoint: str


class Log:
    """An append-only log, kept in a file; `shift` moves its clock."""

    def __init__(self, store: Store) -> None:
        self.key = store.key("rekor")
        self.shift = timedelta()
        self._file = store.home / "log.base64"
        self._lock = threading.Lock()
        kept = self._file.read_text(encoding="ascii").split() if self._file.exists() else []
        self._leaves = [_leaf(base64.b64decode(line)) for line in kept]

    def submit_v1(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """Log a `dsse` or `hashedrekord` entry and answer as version 1 does."""
        kinds = {"dsse": _dsse_body, "hashedrekord": _hashedrekord_body}
        entry = self._append(kinds[proposed["kind"]](proposed))
        stamped: dict[str, str | int] = {
            "body": _b64(entry.body),
            "integratedTime": int(time.time() + self.shift.total_seconds()),
            "logID": key_id(self.key).hex(),
            "logIndex": entry.index,
        }
        proof = {
            "checkpoint": entry.checkpoint,
            "hashes": [h.hex() for h in entry.path],
            "logIndex": entry.index,
            "rootHash": entry.root.hex(),
            "treeSize": entry.size,
        }
        promise = _b64(sign(self.key, rfc8785.dumps(stamped)))
        verification = {"signedEntryTimestamp": promise, "inclusionProof": proof}
        return {secrets.token_hex(32): {**stamped, "verification": verification}}

    def submit_v2(self, request: dict[str, Any]) -> dict[str, Any]:
        """Log a `hashedrekord` entry and answer as version 2 does: without a time of its own."""
        record = request["hashedRekordRequestV002"]
        signature = record["signature"]
        certificate = base64.b64decode(signature["verifier"]["x509Certificate"]["rawBytes"])
        _check(
            x509.load_der_x509_certificate(certificate),
            base64.b64decode(signature["content"]),
            base64.b64decode(record["digest"]),
        )
        logged = {"data": {"algorithm": "SHA2_256", "digest": record["digest"]}, "signature": signature}
        entry = self._append({"apiVersion": "0.0.2", "kind": "hashedrekord", "spec": {"hashedRekordV002": logged}})
        return {
            "logIndex": str(entry.index),
            "logId": {"keyId": _b64(key_id(self.key))},
            "kindVersion": {"kind": "hashedrekord", "version": "0.0.2"},
            "canonicalizedBody": _b64(entry.body),
            "inclusionProof": {
                "logIndex": str(entry.index),
                "treeSize": str(entry.size),
                "rootHash": _b64(entry.root),
                "hashes": [_b64(h) for h in entry.path],
                "checkpoint": {"envelope": entry.checkpoint},
            },
        }

    def _append(self, body: dict[str, Any]) -> Entry:
        raw = rfc8785.dumps(body)
        with self._lock, self._file.open("a", encoding="ascii") as f:
            f.write(_b64(raw) + "\n")
            self._leaves.append(_leaf(raw))
            leaves = list(self._leaves)
        index, size, root = len(leaves) - 1, len(leaves), _root(leaves)
        note = f"{ORIGIN} - 1\n{size}\n{_b64(root)}\n"
        signature = _b64(key_id(self.key)[:4] + sign(self.key, note.encode()))
        return Entry(raw, index, size, root, _path(index, leaves), f"{note}\n\u2014 {ORIGIN} {signature}\n")


def _dsse_body(proposed: dict[str, Any]) -> dict[str, Any]:
    content = proposed["spec"]["proposedContent"]
    envelope, verifier = json.loads(content["envelope"]), content["verifiers"][0]
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    signature = envelope["signatures"][0]["sig"]
    certificate = x509.load_pem_x509_certificate(base64.b64decode(verifier))
    _check(certificate, base64.b64decode(signature), hashlib.sha256(signed).digest())
    spec = {
        "envelopeHash": _hash(content["envelope"].encode()),
        "payloadHash": _hash(payload),
        "signatures": [{"signature": signature, "verifier": verifier}],
    }
    return {"apiVersion": "0.0.1", "kind": "dsse", "spec": spec}


def _hashedrekord_body(proposed: dict[str, Any]) -> dict[str, Any]:
    spec = proposed["spec"]
    certificate = x509.load_pem_x509_certificate(base64.b64decode(spec["signature"]["publicKey"]["content"]))
    signature = base64.b64decode(spec["signature"]["content"])
    _check(certificate, signature, bytes.fromhex(spec["data"]["hash"]["value"]))
    given = json.loads(json.dumps(spec), object_hook=lambda d: {k: v for k, v in d.items() if v is not None})
    return {"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": given}


def _check(certificate: x509.Certificate, signature: bytes, digest: bytes) -> None:
    public = certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(signature, digest, ec.ECDSA(Prehashed(hashes.SHA256())))


def _root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    middle = _split(leaves)
    return _node(_root(leaves[:middle]), _root(leaves[middle:]))


def _path(index: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    middle = _split(leaves)
    if index < middle:
        return [*_path(index, leaves[:middle]), _root(leaves[middle:])]
    return [*_path(index - middle, leaves[middle:]), _root(leaves[:middle])]


def _split(leaves: list[bytes]) -> int:
    """Return the largest power of two below the number of leaves."""
    return 1 << ((len(leaves) - 1).bit_length() - 1)


def _leaf(body: bytes) -> bytes:
    return hashlib.sha256(b"\0" + body).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _hash(data: bytes) -> dict[str, str]:
    return {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest()}


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
