"""Keyless signatures end to end: the unmodified Sigstore client against a private instance on loopback.

The instance starts with the module; its timestamps need the program `openssl`.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from pipeline.catalog.names import Channel
from pipeline.errors import CatalogError, Refusal, ToolError, TrustError
from pipeline.manifest import dsse, pointer
from pipeline.manifest.dsse import Opened, Opener
from pipeline.manifest.encoding import canonical
from pipeline.manifest.rules import Bundles, Seen
from pipeline.manifest.trust import SigstoreTrust, Trust
from pipeline.ports import keys, sigstore
from pipeline.ports.keys import Signer
from pipeline.ports.trust import opener
from pipeline.registry import layout
from pipeline.registry.channels import rollback
from pipeline.registry.consume import fetch
from pipeline.registry.folder import FolderStore
from pipeline.registry.publish import SignedRelease, publish
from tests.support.releases import LINE, NOW, Publisher
from tests.support.sigstore.oidc import Claims, github_claims
from tests.support.sigstore_instance import SigstoreInstance

LOG = "verificationMaterial.tlogEntries.0"
PROOF = f"{LOG}.inclusionProof"
STAMPS = "verificationMaterial.timestampVerificationData.rfc3161Timestamps"
CERTIFICATE = "verificationMaterial.certificate.rawBytes"
IDENTITY = r"https://github\.com/acme/edge/\.github/workflows/release\.yml@refs/tags/(?P<tag>v\d+\.\d+\.\d+)"
PAYLOAD = canonical(
    {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "edge", "digest": {"sha256": "ab" * 32}}],
        "predicateType": "https://example.org/test/v1",
        "predicate": {"version": 7},
    }
)
SERVICES = {"log-1": (1, False), "log-1-timestamp": (1, True), "log-2-timestamp": (2, True)}
ELSEWHERE = ("GITHUB_ACTIONS", "BUILDKITE", "GITLAB_CI", "CIRCLECI", "GOOGLE_SERVICE_ACCOUNT_NAME")

Document = dict[str, Any]


@dataclass(frozen=True)
class Site:
    """An instance and a folder with what its users keep of it."""

    instance: SigstoreInstance
    folder: Path

    def opener(self, **changes: Any) -> Opener:
        (self.folder / "trusted_root.json").write_text(json.dumps(self.instance.trusted_root()))
        pinned = {"trusted_root": "trusted_root.json", "identity": IDENTITY, "repository_id": "1001"}
        return opener(Trust(line="edge", sigstore=SigstoreTrust(**{**pinned, **changes})), self.folder)

    def config(self, rekor: int = 1, tsa: bool = False) -> Path:
        path = self.folder / "client_trust_config.json"
        path.write_text(json.dumps(self.instance.client_config(rekor=rekor, tsa=tsa)))
        return path

    def sign(
        self, claims: Claims | None = None, *, payload: bytes = PAYLOAD, rekor: int = 1, tsa: bool = False
    ) -> bytes:
        self.instance.claims = claims or github_claims()
        return sigstore.signer(self.config(rekor, tsa))(payload)


@contextmanager
def run_in(instance: SigstoreInstance) -> Iterator[None]:
    """Make this process a GitHub Actions run that gets its tokens from the instance."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ELSEWHERE:
            monkeypatch.delenv(name, raising=False)
        for name, value in instance.actions_environment().items():
            monkeypatch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SigstoreInstance]:
    with SigstoreInstance(tmp_path_factory.mktemp("sigstore")) as running:
        yield running


@pytest.fixture
def site(instance: SigstoreInstance, tmp_path: Path) -> Iterator[Site]:
    with run_in(instance):
        yield Site(instance, tmp_path)


@dataclass(frozen=True)
class Signed:
    """A bundle, one of the same run for the log entry before it, and what opens both."""

    services: str
    bundle: Document
    other: Document
    verify: Opener


@pytest.fixture(scope="module", params=SERVICES)
def signed(
    request: pytest.FixtureRequest, instance: SigstoreInstance, tmp_path_factory: pytest.TempPathFactory
) -> Signed:
    rekor, tsa = SERVICES[request.param]
    place = Site(instance, tmp_path_factory.mktemp("signed"))
    with run_in(instance):
        first, second, third = (json.loads(place.sign(rekor=rekor, tsa=tsa)) for _ in range(3))
    assert first != second
    return Signed(request.param, third, second, place.opener())


def refusal(verify: Opener, bundle: bytes | Document) -> TrustError:
    with pytest.raises(TrustError) as caught:
        verify(bundle if isinstance(bundle, bytes) else json.dumps(bundle).encode())
    return caught.value


def flipped(base64_text: str) -> str:
    data = bytearray(base64.b64decode(base64_text))
    data[len(data) // 2] ^= 1
    return base64.b64encode(data).decode()


def at(bundle: Document, field: str) -> Any:
    """Return what stands in a dotted field."""
    place: Any = bundle
    for part in field.split("."):
        place = place[int(part) if part.isdigit() else part]
    return place


def change(bundle: Document, field: str, value: Any) -> Document:
    """Return a copy with another value in one dotted field; None takes the field away."""
    copied = copy.deepcopy(bundle)
    path, _, last = field.rpartition(".")
    place = at(copied, path) if path else copied
    if value is None:
        del place[last]
    else:
        place[int(last) if last.isdigit() else last] = value
    return copied


def fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a bundle with its dotted name."""
    if isinstance(value, str):
        yield path, value
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from fields(inner, f"{path}.{key}" if path else str(key))


def test_release_run_signs_and_consumer_opens(signed: Signed) -> None:
    """What a release run signs opens to the same payload, with the tag its certificate names."""
    assert signed.verify(json.dumps(signed.bundle).encode()) == Opened(PAYLOAD, "v1.2.3")


def test_verification_is_offline(tmp_path: Path) -> None:
    """A bundle still opens when the instance that made it is gone."""
    with SigstoreInstance(tmp_path / "keys") as gone, run_in(gone):
        bundle = Site(gone, tmp_path).sign()
    assert Site(gone, tmp_path).opener()(bundle).payload == PAYLOAD


TAMPERED = {
    "payload": "dsseEnvelope.payload",
    "signature": "dsseEnvelope.signatures.0.sig",
    "log body": f"{LOG}.canonicalizedBody",
    "log root": f"{PROOF}.rootHash",
    "log path": f"{PROOF}.hashes.0",
    "log index in the proof": f"{PROOF}.logIndex",
}
PROMISED = {
    "log time": f"{LOG}.integratedTime",
    "log index": f"{LOG}.logIndex",
    "log promise": f"{LOG}.inclusionPromise.signedEntryTimestamp",
}


def changed(value: str) -> str:
    if value.isdigit():
        return str(int(value) + 1) if len(value) >= 10 else "0"  # a time becomes later, an index another
    return flipped(value)


@pytest.mark.parametrize("case", TAMPERED)
def test_changed_field_is_refused(signed: Signed, case: str) -> None:
    """A bundle with one changed field is refused as tampered with."""
    bundle = change(signed.bundle, TAMPERED[case], changed(at(signed.bundle, TAMPERED[case])))
    assert refusal(signed.verify, bundle).refusal is Refusal.TAMPERED


@pytest.mark.parametrize("signed", ["log-1", "log-1-timestamp"], indirect=True)
@pytest.mark.parametrize("case", PROMISED)
def test_changed_promise_is_refused(signed: Signed, case: str) -> None:
    """A change to what version 1 of the log signed for the entry is refused as tampering."""
    bundle = change(signed.bundle, PROMISED[case], changed(at(signed.bundle, PROMISED[case])))
    assert refusal(signed.verify, bundle).refusal is Refusal.TAMPERED


CHECKPOINTS: dict[str, Callable[[str], str]] = {
    "other root": lambda text: text.replace(text.splitlines()[2], base64.b64encode(bytes(32)).decode()),
    "other size": lambda text: text.replace(f"\n{text.splitlines()[1]}\n", "\n999999\n"),
    "other origin": lambda text: text.replace("private - 1", "private - 2"),
    "no signature": lambda text: text.split("\u2014")[0],
    "empty": lambda _: "",
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_changed_checkpoint_is_refused(signed: Signed, case: str) -> None:
    """A bundle whose log checkpoint was changed is refused as tampered with."""
    field = f"{PROOF}.checkpoint.envelope"
    bundle = change(signed.bundle, field, CHECKPOINTS[case](at(signed.bundle, field)))
    assert refusal(signed.verify, bundle).refusal is Refusal.TAMPERED


@pytest.mark.parametrize(
    "field", ["verificationMaterial.tlogEntries", "verificationMaterial.certificate", "dsseEnvelope"]
)
def test_parts_of_two_bundles_are_refused(signed: Signed, field: str, site: Site) -> None:
    """A bundle with the log entry, the certificate or the envelope of another run's bundle is refused."""
    other = site.sign(payload=PAYLOAD.replace(b"7", b"8"))
    bundle = change(signed.bundle, field, at(json.loads(other), field))
    assert refusal(signed.verify, bundle).refusal in {Refusal.TAMPERED, Refusal.WRONG_SIGNER}


def is_base64(text: str) -> bool:
    try:
        return bool(base64.b64decode(text, validate=True))
    except ValueError:
        return False


def test_any_change_is_refused_or_has_no_effect(signed: Signed) -> None:
    """Whatever text of a bundle is changed, it is refused or opens to the same payload and tag."""
    without_effect = set()
    for field, value in fields(signed.bundle):
        for new in ("", "x", changed(value) if value.isdigit() or is_base64(value) else value.upper()):
            if new == value:
                continue
            try:
                opened = signed.verify(json.dumps(change(signed.bundle, field, new)).encode())
            except TrustError:
                continue
            assert opened == Opened(PAYLOAD, "v1.2.3"), field
            without_effect.add(field.rpartition(".")[2])
    assert without_effect <= {"logIndex", "keyId"}


MISSING = {
    "certificate": "verificationMaterial.certificate",
    "log entries": "verificationMaterial.tlogEntries",
    "proof": PROOF,
    "checkpoint": f"{PROOF}.checkpoint",
    "envelope": "dsseEnvelope",
    "signatures": "dsseEnvelope.signatures",
    "material": "verificationMaterial",
    "media type": "mediaType",
}


@pytest.mark.parametrize("case", MISSING)
def test_incomplete_bundle_is_refused(signed: Signed, case: str) -> None:
    """A bundle that lacks a part is refused as malformed."""
    assert refusal(signed.verify, change(signed.bundle, MISSING[case], None)).refusal is Refusal.MALFORMED


def test_no_source_of_time_is_refused(signed: Signed) -> None:
    """A bundle without any signed time is refused: its certificate could have expired long before."""
    bundle = signed.bundle
    if signed.services != "log-2-timestamp":
        bundle = change(bundle, f"{LOG}.inclusionPromise", None)
    bundle = change(bundle, "verificationMaterial.timestampVerificationData", None)
    assert refusal(signed.verify, bundle).refusal is Refusal.MALFORMED


def test_unsigned_time_is_refused(signed: Signed) -> None:
    """A time the log does not vouch for, or a timestamp of something else, is no source of time."""
    if signed.services == "log-1":
        bundle = change(signed.bundle, f"{LOG}.integratedTime", "0")
    else:
        bundle = change(signed.bundle, STAMPS, at(signed.other, STAMPS))
        if signed.services == "log-1-timestamp":
            bundle = change(bundle, f"{LOG}.inclusionPromise", None)
    found = refusal(signed.verify, bundle)
    assert found.refusal is Refusal.TAMPERED
    assert "time" in found.message


def test_two_signatures_are_refused(signed: Signed) -> None:
    """A bundle with a second signature is refused."""
    bundle = copy.deepcopy(signed.bundle)
    bundle["dsseEnvelope"]["signatures"] *= 2
    assert refusal(signed.verify, bundle).refusal is Refusal.TAMPERED


GARBAGE = {
    "empty": (b"", Refusal.UNSIGNED),
    "no JSON": (b"\xff\xfe{", Refusal.MALFORMED),
    "a list": (b"[]", Refusal.MALFORMED),
    "a number": (b"7", Refusal.MALFORMED),
    "other JSON": (b"{}", Refusal.MALFORMED),
    "material of another type": (b'{"verificationMaterial": 7}', Refusal.MALFORMED),
    "nested": (b"[" * 100_000, Refusal.MALFORMED),
    "huge": (b" " * (dsse.MAX_BUNDLE + 1), Refusal.OVERSIZED),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_is_refused(site: Site, case: str) -> None:
    """What is not a bundle is refused by its kind."""
    data, expected = GARBAGE[case]
    assert refusal(site.opener(), data).refusal is expected


def test_cut_off_bundle_is_refused(signed: Signed) -> None:
    """A bundle cut off anywhere is refused as malformed."""
    data = json.dumps(signed.bundle).encode()
    for end in range(1, len(data), 97):
        assert refusal(signed.verify, data[:end]).refusal is Refusal.MALFORMED


STRANGERS = {
    "fork": github_claims(repository="mallory/edge"),
    "reused repository name": github_claims(repository_id="666"),
    "branch": github_claims(ref="refs/heads/main"),
    "other workflow": github_claims(workflow="ci.yml"),
    "self-hosted runner": github_claims(runner_environment="self-hosted"),
    "tag with an addition": github_claims(ref="refs/tags/v1.2.3-rc1"),
    "line break behind the tag": github_claims(ref="refs/tags/v1.2.3\n"),
    "e-mail address": {"iss": github_claims()["iss"], "sub": "mallory", "email": "mallory@example.org"},
    "no repository": {k: v for k, v in github_claims().items() if k not in {"repository_id", "run_id"}},
    "no runner": {k: v for k, v in github_claims().items() if k != "runner_environment"},
}


@pytest.mark.parametrize("case", STRANGERS)
def test_other_signer_is_refused(site: Site, case: str) -> None:
    """A signature by anybody but the pinned workflow of the pinned repository is refused."""
    assert refusal(site.opener(), site.sign(STRANGERS[case])).refusal is Refusal.WRONG_SIGNER


def test_other_issuer_is_refused(site: Site) -> None:
    """The pinned identity vouched for by another issuer is refused."""
    bundle = site.sign({**github_claims(), "iss": site.instance.url})
    assert refusal(site.opener(), bundle).refusal is Refusal.WRONG_SIGNER
    assert site.opener(issuer=site.instance.url)(bundle).payload == PAYLOAD


def test_identity_without_a_tag(site: Site) -> None:
    """An identity that names no tag opens without one."""
    verify = site.opener(identity=r"https://github\.com/acme/edge/.*", repository_id=None, runner_environment=None)
    assert verify(site.sign(github_claims(ref="refs/heads/main"))) == Opened(PAYLOAD, None)


def run_for(site: Site, version: int, **claims: str) -> Signer:
    """Return what signs as the release run of a version's tag."""
    return lambda payload: site.sign(github_claims(ref=f"refs/tags/v{version}.0.0", **claims), payload=payload)


def released(site: Site, folder: Path, version: int, by: Signer | None = None) -> SignedRelease:
    """Return a release whose tag is its version's, signed by the run for that tag or by another."""
    made = Publisher().release(
        folder, version, mutate=lambda d: d["predicate"]["release"].update(tag=f"v{version}.0.0")
    )
    payloads = {name: dsse.unverified_payload(b) for name, b in made.bundles.variants.items()}
    sign = by or run_for(site, version)
    bundles = Bundles(
        manifest=sign(dsse.unverified_payload(made.bundles.manifest)),
        provenance=sign(dsse.unverified_payload(made.bundles.provenance)),
        variants={name: sign(payload) for name, payload in payloads.items()},
    )
    return SignedRelease(bundles, made.files)


def test_a_newer_run_rolls_back(site: Site, tmp_path: Path) -> None:
    """The run for v2 signs the rollback to v1 and consumers who saw v2 follow it; a fork's rollback is refused."""
    store, verify = FolderStore(tmp_path / "registry"), site.opener()
    usual: Any = {"line": LINE, "channel": Channel.DEV, "opener": verify, "now": NOW}
    for version in (1, 2):
        release = released(site, tmp_path / str(version), version)
        publish(store, release, channel=Channel.DEV, signer=run_for(site, 2), opener=verify, now=NOW)
    seen = fetch(store, seen=Seen(), **usual).seen
    with pytest.raises(TrustError) as caught:
        rollback(store, signer=run_for(site, 2, repository="mallory/edge"), **usual)
    assert caught.value.refusal is Refusal.WRONG_SIGNER
    assert fetch(store, seen=seen, **usual).manifest.release.version == 2
    rollback(store, signer=run_for(site, 2), **usual)
    assert fetch(store, seen=seen, **usual).manifest.release.version == 1


def test_a_strangers_move_is_refused(site: Site, tmp_path: Path) -> None:
    """A consumer refuses a move that a signer outside the identity rule put into the registry."""
    store, verify = FolderStore(tmp_path / "registry"), site.opener()
    release = released(site, tmp_path / "1", 1)
    done = publish(store, release, channel=Channel.DEV, signer=run_for(site, 1), opener=verify, now=NOW)
    forged = done.pointer.model_copy(update={"serial": 2})
    move = run_for(site, 1, workflow="ci.yml")(pointer.build(forged).encode())
    store.create(layout.pointer(LINE, Channel.DEV, 2), move)
    with pytest.raises(TrustError) as caught:
        fetch(store, line=LINE, channel=Channel.DEV, opener=verify, now=NOW, seen=Seen())
    assert caught.value.refusal is Refusal.WRONG_SIGNER


def test_a_release_by_another_tags_run_is_refused(site: Site, tmp_path: Path) -> None:
    """A run for one tag cannot sign another tag's release."""
    store = FolderStore(tmp_path / "registry")
    release = released(site, tmp_path / "1", 1, by=run_for(site, 2))
    with pytest.raises(TrustError, match=r"v2\.0\.0") as caught:
        publish(store, release, channel=Channel.DEV, signer=run_for(site, 2), opener=site.opener(), now=NOW)
    assert caught.value.refusal is Refusal.WRONG_SIGNER


@pytest.mark.parametrize("services", SERVICES)
def test_expired_certificate_is_refused(site: Site, services: str) -> None:
    """A signature from outside its certificate's ten minutes is refused, and the message says so."""
    clock = site.instance.ca if services == "log-2-timestamp" else site.instance.log
    clock.shift = timedelta(hours=1)
    try:
        bundle = site.sign(rekor=SERVICES[services][0], tsa=SERVICES[services][1])
    finally:
        clock.shift = timedelta()
    found = refusal(site.opener(), bundle)
    assert found.refusal is Refusal.WRONG_SIGNER
    assert "expired, not yet valid" in found.message


def test_other_instance_is_refused(site: Site, tmp_path: Path) -> None:
    """A signature by the pinned identity in another Sigstore instance is refused."""
    with SigstoreInstance(tmp_path / "other") as other, run_in(other):
        bundle = Site(other, tmp_path / "other").sign()
    assert refusal(site.opener(), bundle).refusal is Refusal.WRONG_SIGNER


@pytest.mark.parametrize("service", ["tlogs", "ctlogs"])
def test_other_log_is_refused(site: Site, tmp_path: Path, service: str) -> None:
    """A signature whose log or certificate log is not the pinned one is refused."""
    bundle = site.sign()
    verify_path = tmp_path / "mixed"
    verify_path.mkdir()
    with SigstoreInstance(tmp_path / "other") as other:
        root = {**site.instance.trusted_root(), service: other.trusted_root()[service]}
    (verify_path / "root.json").write_text(json.dumps(root))
    pinned = SigstoreTrust(trusted_root="root.json", identity=IDENTITY)
    assert refusal(sigstore.opener(pinned, verify_path), bundle).refusal is Refusal.TAMPERED


def handmade(
    instance: SigstoreInstance, kind: str = dsse.PAYLOAD_TYPE, names: list[x509.GeneralName] | None = None
) -> bytes:
    """Return a bundle for a payload of any kind and signers of any names, such as no stock client makes."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    chain = instance.ca.issue(request.public_bytes(Encoding.PEM), github_claims(), names)
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(PAYLOAD), PAYLOAD)
    signature = base64.b64encode(key.sign(signed, ec.ECDSA(hashes.SHA256()))).decode()
    envelope = {
        "payload": base64.b64encode(PAYLOAD).decode(),
        "payloadType": kind,
        "signatures": [{"sig": signature, "keyid": ""}],
    }
    verifier = base64.b64encode(chain[0].encode()).decode()
    content = {"envelope": json.dumps(envelope), "verifiers": [verifier]}
    logged = instance.log.submit_v1({"kind": "dsse", "spec": {"proposedContent": content}})
    (found,) = logged.values()
    given = found["verification"]["inclusionProof"]
    proof = {
        "logIndex": str(given["logIndex"]),
        "treeSize": str(given["treeSize"]),
        "rootHash": hex_to_base64(given["rootHash"]),
        "hashes": [hex_to_base64(h) for h in given["hashes"]],
        "checkpoint": {"envelope": given["checkpoint"]},
    }
    log = {
        "logIndex": str(found["logIndex"]),
        "logId": {"keyId": hex_to_base64(found["logID"])},
        "kindVersion": {"kind": "dsse", "version": "0.0.1"},
        "integratedTime": str(found["integratedTime"]),
        "inclusionPromise": {"signedEntryTimestamp": found["verification"]["signedEntryTimestamp"]},
        "inclusionProof": proof,
        "canonicalizedBody": found["body"],
    }
    der = x509.load_pem_x509_certificate(chain[0].encode()).public_bytes(Encoding.DER)
    material = {"certificate": {"rawBytes": base64.b64encode(der).decode()}, "tlogEntries": [log]}
    document = {"mediaType": dsse.BUNDLE_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}
    return json.dumps(document).encode()


def hex_to_base64(digits: str) -> str:
    return base64.b64encode(bytes.fromhex(digits)).decode()


def test_other_payload_type_is_refused(site: Site) -> None:
    """A signed payload that is no in-toto statement is refused, however well it is signed."""
    assert site.opener()(handmade(site.instance)).payload == PAYLOAD
    assert refusal(site.opener(), handmade(site.instance, "text/plain")).refusal is Refusal.MALFORMED


SIGNER = f"https://github.com/{github_claims()['job_workflow_ref']}"
ODD_NAMES: dict[str, list[x509.GeneralName]] = {
    "two": [x509.UniformResourceIdentifier(SIGNER), x509.UniformResourceIdentifier("https://example.org/mallory")],
    "twice": [x509.UniformResourceIdentifier(SIGNER)] * 2,
    "and an address": [x509.UniformResourceIdentifier(SIGNER), x509.RFC822Name("mallory@example.org")],
    "as a host": [x509.DNSName(SIGNER)],
    "as a registered identifier": [x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))],
}


@pytest.mark.parametrize("case", ODD_NAMES)
def test_certificate_names_one_uri(site: Site, case: str) -> None:
    """A certificate that names the pinned identity beside another, or as something else, is refused."""
    assert refusal(site.opener(), handmade(site.instance, names=ODD_NAMES[case])).refusal is Refusal.WRONG_SIGNER


def test_key_and_keyless_do_not_mix(site: Site, tmp_path: Path) -> None:
    """A key's bundle is refused where an identity is pinned, and the other way round."""
    pair = keys.load_or_create(tmp_path / "keys")
    pinned = opener(Trust(line="edge", public_keys=[pair.public_pem.decode()]), tmp_path)
    by_key = keys.signer(pair)(PAYLOAD)
    assert refusal(site.opener(), by_key).refusal is Refusal.WRONG_SIGNER
    assert refusal(pinned, site.sign()).refusal is Refusal.WRONG_SIGNER


def test_no_credential_is_an_error_and_no_login(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an ambient credential signing ends with advice, and no service is asked for anything."""
    config = site.config()
    monkeypatch.delenv("GITHUB_ACTIONS")
    before = list(site.instance.seen)
    with pytest.raises(ToolError) as caught:
        sigstore.signer(config)
    assert "id-token: write" in caught.value.hint
    assert site.instance.seen == before


def test_run_without_permission_is_an_error(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that lacks `id-token: write` gets the same advice."""
    monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
    with pytest.raises(ToolError) as caught:
        sigstore.signer(site.config())
    assert "id-token: write" in caught.value.hint


def test_refused_token_is_an_error(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose request for a token is refused gets the same advice."""
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "wrong")
    with pytest.raises(ToolError) as caught:
        sigstore.signer(site.config())
    assert "id-token: write" in caught.value.hint


def test_forged_token_gets_no_signature(site: Site, tmp_path: Path) -> None:
    """A token by anybody but the issuer gets no certificate, so nothing is signed."""
    with SigstoreInstance(tmp_path / "forger") as forger, run_in(forger):
        sign = sigstore.signer(site.config())
        with pytest.raises(ToolError, match="Sigstore did not sign"):
            sign(PAYLOAD)


def test_service_that_is_down_is_an_error(site: Site, tmp_path: Path) -> None:
    """When a service does not answer, signing ends with an error of ours."""
    with SigstoreInstance(tmp_path / "down") as down:
        config = Site(down, tmp_path).config()
    with pytest.raises(ToolError, match="Sigstore did not sign"):
        sigstore.signer(config)(PAYLOAD)


def test_payload_that_is_no_statement_is_not_signed(site: Site) -> None:
    """Only in-toto statements are signed."""
    with pytest.raises(ToolError, match="Sigstore did not sign"):
        site.sign(payload=b"{}")


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "\x00"], ids=["missing", "empty", "object", "list", "binary"])
def test_unusable_files_are_errors(site: Site, text: str | None) -> None:
    """A client config or trusted root that cannot be read is an error that names it."""
    path = site.folder / "broken.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ToolError, match=r"broken\.json"):
        sigstore.signer(path)
    with pytest.raises(CatalogError, match=r"broken\.json"):
        site.opener(trusted_root="broken.json")


def test_production_root_is_built_in(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The public instance's root needs no network, and does not accept the private instance's signatures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(site.folder))
    monkeypatch.setenv("XDG_DATA_HOME", str(site.folder))
    found = refusal(site.opener(trusted_root="production"), site.sign())
    assert found.refusal is Refusal.WRONG_SIGNER
