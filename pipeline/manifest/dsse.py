"""DSSE envelopes in Sigstore bundles, and verification with pinned EC P-256 keys.

Sources: DSSE v1 (https://github.com/secure-systems-lab/dsse/blob/master/protocol.md), Sigstore bundle v0.3
(https://github.com/sigstore/protobuf-specs), OpenSSF model signing v1.0 for the key's hint.

Rules: nothing in the payload is looked at before its signature holds; exactly one signature; strict base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from pipeline.errors import Refusal, TrustError

PAYLOAD_TYPE = "application/vnd.in-toto+json"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
MAX_BUNDLE = 16 << 20


@dataclass(frozen=True)
class Opened:
    """A payload whose signature holds; `tag` is the git tag the signer's identity names, where it names one."""

    payload: bytes
    tag: str | None = None


# Verifies one bundle of any size against pinned trust; raises TrustError UNSIGNED, OVERSIZED, WRONG_SIGNER, TAMPERED or
# MALFORMED.
Opener = Callable[[bytes], Opened]


def pae(payload: bytes) -> bytes:
    """Return the pre-authentication encoding: the bytes that are signed."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def key_hint(public_pem: bytes) -> str:
    """Return the hint by which a bundle names its key: sha256 of the PEM."""
    return hashlib.sha256(public_pem).hexdigest()


def key_bundle(payload: bytes, signature: bytes, public_pem: bytes) -> bytes:
    """Return the Sigstore bundle of a key-signed payload."""
    return json.dumps(
        {
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": {"publicKey": {"hint": key_hint(public_pem)}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
            },
        },
        sort_keys=True,
    ).encode()


def open_with_keys(bundle: bytes, public_pems: tuple[bytes, ...]) -> Opened:
    """Return the payload if one of the pinned keys signed it.

    Raises:
        TrustError: UNSIGNED (no bundle), WRONG_SIGNER, TAMPERED (signature does not fit), OVERSIZED, MALFORMED.
    """
    payload, signature, hint = _envelope(bundle)
    pinned = {key_hint(pem): pem for pem in public_pems}
    if hint not in pinned:
        raise TrustError(Refusal.WRONG_SIGNER, f"signed by key {hint[:16]}, which is not pinned")
    key = load_pem_public_key(pinned[hint])
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TrustError(Refusal.WRONG_SIGNER, "the pinned key is not an EC P-256 key")
    try:
        key.verify(signature, pae(payload), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as e:
        raise TrustError(Refusal.TAMPERED, "the signature does not fit what it signs") from e
    return Opened(payload)


def unverified_payload(bundle: bytes) -> bytes:
    """Return the payload without looking at the signature: only to compare with bytes one has made oneself."""
    return base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"], validate=True)


def _envelope(bundle: bytes) -> tuple[bytes, bytes, str]:
    check_size(bundle)
    try:
        document = json.loads(bundle)
        envelope = document["dsseEnvelope"]
        (signature,) = envelope["signatures"]
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise TrustError(Refusal.MALFORMED, f"payload type {str(envelope['payloadType'])[:60]!r}")
        hint = document["verificationMaterial"].get("publicKey", {}).get("hint")
        if not isinstance(hint, str):
            raise TrustError(Refusal.WRONG_SIGNER, "signed without a key, but keys are pinned")
        payload = base64.b64decode(envelope["payload"], validate=True)
        return payload, base64.b64decode(signature["sig"], validate=True), hint
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as e:
        raise TrustError(Refusal.MALFORMED, f"not a signature bundle: {type(e).__name__}") from e


def check_size(bundle: bytes) -> None:
    """Raise TrustError for an empty (UNSIGNED) or an oversized (OVERSIZED) bundle."""
    if not bundle:
        raise TrustError(Refusal.UNSIGNED, "there is no signature")
    if len(bundle) > MAX_BUNDLE:
        raise TrustError(
            Refusal.OVERSIZED, f"the signature bundle has {len(bundle)} bytes, at most {MAX_BUNDLE} are read"
        )
