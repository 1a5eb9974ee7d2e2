"""A key's bundle opens to what was signed; every change to it is refused by its kind."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Refusal, TrustError
from pipeline.manifest import dsse
from pipeline.ports import keys

PAYLOAD = b'{"version": 7}'
SIGNATURE = "dsseEnvelope.signatures.0.sig"
Document = dict[str, Any]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> keys.KeyPair:
    return keys.load_or_create(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def bundle(pair: keys.KeyPair) -> Document:
    document: Document = json.loads(keys.signer(pair)(PAYLOAD))
    return document


def refusal(pair: keys.KeyPair, data: bytes) -> Refusal:
    with pytest.raises(TrustError) as caught:
        dsse.open_with_keys(data, (pair.public_pem,))
    return caught.value.refusal


def change(bundle: Document, field: str, new: Callable[[Any], Any]) -> bytes:
    """Return the bundle with one dotted field changed."""
    copied: Any = json.loads(json.dumps(bundle))
    place = copied
    *path, last = (int(part) if part.isdigit() else part for part in field.split("."))
    for part in path:
        place = place[part]
    place[last] = new(place[last])
    return json.dumps(copied).encode()


def flipped(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    data[len(data) // 2] ^= 1
    return base64.b64encode(data).decode()


def test_pre_authentication_encoding() -> None:
    """What is signed is the protocol's own example, with this project's payload type."""
    assert dsse.pae(b"hello world") == b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"


@given(payload=st.binary(max_size=1000))
def test_signed_payload_opens(pair: keys.KeyPair, payload: bytes) -> None:
    """Any payload a pinned key signed opens to itself, without a tag."""
    assert dsse.open_with_keys(keys.signer(pair)(payload), (pair.public_pem,)) == dsse.Opened(payload)


def test_other_key_is_refused(pair: keys.KeyPair, tmp_path: Path) -> None:
    """A bundle of a key that is not pinned is refused as another signer's."""
    other = keys.load_or_create(tmp_path)
    assert refusal(pair, keys.signer(other)(PAYLOAD)) is Refusal.WRONG_SIGNER


def test_hint_of_another_key_is_refused(pair: keys.KeyPair, tmp_path: Path) -> None:
    """Another key's signature under the pinned key's hint is refused."""
    other = keys.load_or_create(tmp_path)
    signature = other.private.sign(dsse.pae(PAYLOAD), ec.ECDSA(hashes.SHA256()))
    assert refusal(pair, dsse.key_bundle(PAYLOAD, signature, pair.public_pem)) is Refusal.TAMPERED


def test_other_curve_is_refused() -> None:
    """A key on another curve opens nothing, even if it is pinned."""
    key = ec.generate_private_key(ec.SECP384R1())
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    data = dsse.key_bundle(PAYLOAD, key.sign(dsse.pae(PAYLOAD), ec.ECDSA(hashes.SHA256())), pem)
    with pytest.raises(TrustError) as caught:
        dsse.open_with_keys(data, (pem,))
    assert caught.value.refusal is Refusal.WRONG_SIGNER


def test_no_pinned_key_opens_nothing(bundle: Document) -> None:
    """Without pinned keys every bundle is another signer's."""
    with pytest.raises(TrustError) as caught:
        dsse.open_with_keys(json.dumps(bundle).encode(), ())
    assert caught.value.refusal is Refusal.WRONG_SIGNER


CHANGES: dict[str, tuple[str, Callable[[Any], Any], Refusal]] = {
    "payload": ("dsseEnvelope.payload", flipped, Refusal.TAMPERED),
    "longer payload": ("dsseEnvelope.payload", lambda _: base64.b64encode(PAYLOAD + b" ").decode(), Refusal.TAMPERED),
    "no payload": ("dsseEnvelope.payload", lambda _: "", Refusal.TAMPERED),
    "signature": (SIGNATURE, flipped, Refusal.TAMPERED),
    "empty signature": (SIGNATURE, lambda _: "", Refusal.TAMPERED),
    "zero signature": (SIGNATURE, lambda _: base64.b64encode(b"0\x06\x02\x01\0\x02\x01\0").decode(), Refusal.TAMPERED),
    "two signatures": ("dsseEnvelope.signatures", lambda given: given * 2, Refusal.MALFORMED),
    "no signatures": ("dsseEnvelope.signatures", lambda _: [], Refusal.MALFORMED),
    "payload type": ("dsseEnvelope.payloadType", lambda _: "text/plain", Refusal.MALFORMED),
    "payload type of another kind": ("dsseEnvelope.payloadType", lambda _: [1], Refusal.MALFORMED),
    "hint": ("verificationMaterial.publicKey.hint", lambda _: "0" * 64, Refusal.WRONG_SIGNER),
    "no hint": ("verificationMaterial.publicKey", lambda _: {}, Refusal.WRONG_SIGNER),
    "hint of another kind": ("verificationMaterial.publicKey.hint", lambda _: ["x"], Refusal.WRONG_SIGNER),
    "certificate instead of key": (
        "verificationMaterial",
        lambda _: {"certificate": {"rawBytes": "AA=="}},
        Refusal.WRONG_SIGNER,
    ),
    "material of another kind": ("verificationMaterial", lambda _: 7, Refusal.MALFORMED),
    "envelope of another kind": ("dsseEnvelope", lambda _: "x", Refusal.MALFORMED),
    "line break in base64": ("dsseEnvelope.payload", lambda given: given + "\n", Refusal.MALFORMED),
    "other alphabet of base64": (SIGNATURE, lambda given: "-_" + given[2:], Refusal.MALFORMED),
    "number for text": ("dsseEnvelope.payload", lambda _: 7, Refusal.MALFORMED),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changed_bundle_is_refused(pair: keys.KeyPair, bundle: Document, case: str) -> None:
    """A bundle with one change is refused by the change's kind."""
    field, new, expected = CHANGES[case]
    assert refusal(pair, change(bundle, field, new)) is expected


GARBAGE = {
    "empty": (b"", Refusal.UNSIGNED),
    "no JSON": (b"\xff\xfe{", Refusal.MALFORMED),
    "a list": (b"[]", Refusal.MALFORMED),
    "nothing": (b"null", Refusal.MALFORMED),
    "other JSON": (b"{}", Refusal.MALFORMED),
    "nested": (b"[" * 100_000, Refusal.MALFORMED),
    "long number": (b"1" * 10_000, Refusal.MALFORMED),
    "largest": (b" " * dsse.MAX_BUNDLE, Refusal.MALFORMED),
    "too large": (b" " * (dsse.MAX_BUNDLE + 1), Refusal.OVERSIZED),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_is_refused(pair: keys.KeyPair, case: str) -> None:
    """What is not a bundle is refused by its kind."""
    data, expected = GARBAGE[case]
    assert refusal(pair, data) is expected


@given(data=st.data())
def test_any_change_is_refused_or_has_no_effect(pair: keys.KeyPair, bundle: Document, data: st.DataObject) -> None:
    """However bytes of a bundle are changed, it is refused or opens to the same payload."""
    changed = bytearray(json.dumps(bundle).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    del changed[data.draw(st.integers(len(changed) // 2, len(changed))) :]
    try:
        opened = dsse.open_with_keys(bytes(changed), (pair.public_pem,))
    except TrustError:
        return
    assert opened == dsse.Opened(PAYLOAD)


def test_unverified_payload(bundle: Document) -> None:
    """A payload can be looked at without verification, to compare it with what one has made."""
    assert dsse.unverified_payload(json.dumps(bundle).encode()) == PAYLOAD
