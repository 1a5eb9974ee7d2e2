"""Keyless signatures through Sigstore: a workflow's identity instead of a key.

Rules: the identity is the ambient one of the CI run, never an interactive login; verification is offline against the
pinned root; whatever goes wrong while verifying is a refusal. Sigstore's library is imported where it is used, so that
releases signed with a key need none of it.

Sources: https://docs.sigstore.dev/about/bundle/ and, for the certificate's extensions,
https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.x509 import Certificate, ExtensionNotFound, SubjectAlternativeName, UniformResourceIdentifier

from pipeline.errors import CatalogError, Refusal, ToolError, TrustError
from pipeline.manifest import dsse
from pipeline.manifest.dsse import Opened, Opener
from pipeline.manifest.trust import SigstoreTrust
from pipeline.ports.keys import Signer

if TYPE_CHECKING:
    from sigstore.models import Bundle, ClientTrustConfig, TrustedRoot
    from sigstore.oidc import IdentityToken
    from sigstore.verify import Verifier

PRODUCTION = "production"
_NO_CREDENTIAL = (
    "signing keyless needs GitHub Actions with `permissions: id-token: write`; elsewhere sign with a key instead"
)


def signer(client_config: Path | None) -> Signer:
    """Return the function that signs payloads as the CI run that calls it.

    Args:
        client_config: file with a Sigstore client trust config; None for the public instance.

    Raises:
        ToolError: there is no ambient credential or no usable config; the function raises it when a service fails.
    """
    _identity()  # a run that may not sign ends here, before anything is built
    config = _client_config(client_config)
    return lambda payload: _sign(payload, config)


def opener(trust: SigstoreTrust, base: Path) -> Opener:
    """Return what verifies bundles of the pinned identity, without the network.

    Args:
        base: folder at which a relative `trusted_root` starts.

    Raises:
        CatalogError: the trusted root cannot be read; the function raises TrustError for any bundle not to be trusted.
    """
    from sigstore.verify import Verifier

    try:
        verifier = Verifier(trusted_root=_trusted_root(trust.trusted_root, base))
    except Exception as e:  # the library's, pydantic's and cryptography's errors have no common base
        raise CatalogError(
            f"trusted_root {trust.trusted_root!r} cannot be used: {_brief(e)}",
            hint="name a file with a Sigstore trusted root, or 'production'",
        ) from e
    return lambda bundle: _open(bundle, verifier, trust)


def trusted_root_of(client_config: Path) -> bytes:
    """Return the trusted root within a client trust config: what verifiers of that instance's signatures pin.

    Raises:
        ToolError: the file is no such config.
    """
    _client_config(client_config)
    return json.dumps(json.loads(client_config.read_bytes())["trustedRoot"]).encode()


def _client_config(path: Path | None) -> ClientTrustConfig:
    from sigstore.models import ClientTrustConfig

    try:
        if path is None:
            return ClientTrustConfig.production()
        return ClientTrustConfig.from_json(path.read_text(encoding="utf-8"))
    except Exception as e:  # the library's, pydantic's and TUF's errors have no common base
        raise ToolError(
            f"no Sigstore client config from {path or 'the public instance'}: {_brief(e)}",
            hint="check the network, or the file EDGE_RELEASE_SIGSTORE_CONFIG names",
        ) from e


def _identity() -> IdentityToken:
    from sigstore.oidc import IdentityToken, detect_credential

    try:
        token = detect_credential()
        if token is not None:
            return IdentityToken(token)
    except Exception as e:  # urllib3's and the library's errors have no common base
        raise ToolError(f"the CI run's identity cannot be had: {_brief(e)}", hint=_NO_CREDENTIAL) from e
    raise ToolError("there is no ambient credential", hint=_NO_CREDENTIAL)


def _sign(payload: bytes, config: ClientTrustConfig) -> bytes:
    from sigstore.dsse import Statement
    from sigstore.sign import SigningContext

    identity = _identity()  # one for each statement: a credential lives for minutes, signing a release may take longer
    try:
        with SigningContext.from_trust_config(config).signer(identity) as session:
            return session.sign_dsse(Statement(payload)).to_json().encode()
    except Exception as e:  # requests', pydantic's and the library's errors have no common base; nothing was signed
        raise ToolError(
            f"Sigstore did not sign: {_brief(e)}", hint="try again; https://status.sigstore.dev tells of outages"
        ) from e


def _trusted_root(name: str, base: Path) -> TrustedRoot:
    from sigstore.models import ClientTrustConfig, TrustedRoot

    if name == PRODUCTION:
        return ClientTrustConfig.production(offline=True).trusted_root
    return TrustedRoot.from_file(str(base / name))


def _open(data: bytes, verifier: Verifier, trust: SigstoreTrust) -> Opened:
    dsse.check_size(data)
    identity = _Identity(trust)
    try:
        bundle = _parse(data)
        kind, payload = _verify(bundle, verifier, identity)
    except TrustError:
        raise
    except Exception as e:  # fail closed: what the library did not foresee is no reason to trust
        raise TrustError(Refusal.TAMPERED, f"the signature cannot be verified: {_brief(e)}") from e
    if kind != dsse.PAYLOAD_TYPE:
        raise TrustError(Refusal.MALFORMED, f"payload type {kind[:60]!r}")
    return Opened(payload, identity.tag)


def _parse(data: bytes) -> Bundle:
    from sigstore.models import Bundle

    try:
        document = json.loads(data)
        if "publicKey" in document["verificationMaterial"]:
            raise TrustError(Refusal.WRONG_SIGNER, "signed with a key, but a Sigstore identity is pinned")
        document["dsseEnvelope"]
        return Bundle.from_json(data)
    except TrustError:
        raise
    except Exception as e:  # the library's and pydantic's errors have no common base, and the bytes may be anything
        raise TrustError(Refusal.MALFORMED, f"not a complete signature bundle: {_brief(e)}") from e


def _verify(bundle: Bundle, verifier: Verifier, identity: _Identity) -> tuple[str, bytes]:
    from sigstore.errors import CertValidationError, VerificationError

    try:
        return verifier.verify_dsse(bundle, identity)
    except CertValidationError as e:
        certificate = bundle.signing_certificate
        raise TrustError(
            Refusal.WRONG_SIGNER,
            "when it was signed, the certificate was expired, not yet valid or not one of the pinned Sigstore "
            f"instance (valid {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC): {_brief(e)}",
        ) from e
    except VerificationError as e:
        raise TrustError(Refusal.TAMPERED, f"signature and log do not fit: {_brief(e)}") from e


class _Identity:
    """The verifier's policy: who the certificate must name. Keeps the tag in that name."""

    def __init__(self, trust: SigstoreTrust) -> None:
        self._trust = trust
        self.tag: str | None = None

    def verify(self, cert: Certificate) -> None:
        uri = _only_uri(cert)
        match = re.fullmatch(self._trust.identity, uri)
        if match is None:
            raise TrustError(Refusal.WRONG_SIGNER, f"signed by {uri!r}, which is not pinned")
        self._check_extensions(cert)
        self.tag = match.groupdict().get("tag")

    def _check_extensions(self, cert: Certificate) -> None:
        from sigstore.verify import policy

        trust = self._trust
        rules: list[policy.VerificationPolicy] = [policy.OIDCIssuerV2(trust.issuer)]
        if trust.repository_id is not None:
            rules.append(policy.OIDCSourceRepositoryIdentifier(trust.repository_id))
        if trust.runner_environment is not None:
            rules.append(policy.OIDCRunnerEnvironment(trust.runner_environment))
        for rule in rules:
            try:
                rule.verify(cert)
            except Exception as e:  # the library's and the ASN.1 decoder's errors have no common base
                raise TrustError(Refusal.WRONG_SIGNER, f"the signer is not the pinned one: {_brief(e)}") from e


def _only_uri(cert: Certificate) -> str:
    try:
        names = list(cert.extensions.get_extension_for_class(SubjectAlternativeName).value)
    except ExtensionNotFound:
        names = []
    if len(names) != 1 or not isinstance(names[0], UniformResourceIdentifier):
        raise TrustError(Refusal.WRONG_SIGNER, "the certificate does not name exactly one URI")
    return names[0].value


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
