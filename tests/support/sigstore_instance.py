"""A private Sigstore instance on loopback: OIDC with GitHub's token endpoint, Fulcio, CT log, Rekor 1 and 2, TSA.

`python -m tests.support.sigstore_instance DIR` runs one until interrupted. It prints its URL and leaves in DIR:

- `trusted_root.json`, for `trust.yaml`;
- `client_trust_config.json`, for `EDGE_RELEASE_SIGSTORE_CONFIG` and `model_signing verify sigstore --trust_config`;
- `actions.env`, the variables by which a process takes itself for a run of the workflow the options describe.
"""

from __future__ import annotations

import argparse
import base64
import json
import secrets
import threading
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.sigstore import oidc
from tests.support.sigstore.ca import Authority
from tests.support.sigstore.log import ORIGIN, Log
from tests.support.sigstore.oidc import Claims, github_claims
from tests.support.sigstore.server import Reply, Request, Server
from tests.support.sigstore.store import Key, Store, key_id, spki
from tests.support.sigstore.tsa import TimestampAuthority


class SigstoreInstance(Server):
    """All services on one port; `claims` is what the run that asks for a token is.

    Args:
        home: folder that keeps keys and log; a second instance on it has the same root of trust.
        port: 0 takes a free one.
    """

    def __init__(self, home: Path, port: int = 0) -> None:
        super().__init__(port)
        store = Store(home)
        self.oidc_key = store.key("oidc")
        self.ca = Authority(store)
        self.log = Log(store)
        self.tsa = TimestampAuthority(store)
        self.claims = github_claims()
        self._request_token = secrets.token_hex(16)
        self.routes = {
            "GET /.well-known/openid-configuration": self._discovery,
            "GET /actions/token": self._actions_token,
            "POST /api/v2/signingCert": self._signing_certificate,
            "POST /api/v1/log/entries": lambda request: Reply.json(self.log.submit_v1(request.json())),
            "POST /api/v2/log/entries": lambda request: Reply.json(self.log.submit_v2(request.json())),
            "POST /tsa": lambda request: Reply(self.tsa.answer(request.body), "application/timestamp-reply"),
        }

    def __enter__(self) -> SigstoreInstance:
        super().__enter__()
        return self

    def token(self, claims: Claims) -> str:
        """Return a token as this instance's issuer, or GitHub where the claims say so, would sign it."""
        return oidc.token(self.oidc_key, {"iss": self.url, **claims})

    def actions_environment(self) -> dict[str, str]:
        """Return the variables that make a process a GitHub Actions run with `id-token: write`."""
        return {
            "GITHUB_ACTIONS": "true",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": self._request_token,
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.url}/actions/token?api-version=2.0",
            "NO_PROXY": "127.0.0.1",
        }

    def trusted_root(self) -> dict[str, Any]:
        """Return the root of trust that verifiers pin."""
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self._logged(f"https://{ORIGIN}", self.log.key)],
            "ctlogs": [self._logged(f"{self.url}/ct", self.ca.ct_key)],
            "certificateAuthorities": [self._authority(self.url, self.ca.certificate, self.ca.root)],
            "timestampAuthorities": [self._authority(f"{self.url}/tsa", self.tsa.certificate, self.tsa.root)],
        }

    def client_config(self, *, rekor: int = 1, tsa: bool = False) -> dict[str, Any]:
        """Return what signers use; version 2 of the log needs the timestamp authority and gets it."""
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": self.trusted_root(),
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                "caUrls": [_service(self.url)],
                "oidcUrls": [_service(self.url)],
                "rekorTlogUrls": [_service(self.url, rekor)],
                "tsaUrls": [_service(f"{self.url}/tsa")] if tsa or rekor == 2 else [],
                "rekorTlogConfig": {"selector": "ANY"},
                "tsaConfig": {"selector": "ANY"},
            },
        }

    def _discovery(self, request: Request) -> Reply:
        endpoints = {"authorization_endpoint": f"{self.url}/auth", "token_endpoint": f"{self.url}/token"}
        return Reply.json({"issuer": self.url, **endpoints})

    def _actions_token(self, request: Request) -> Reply:
        if request.authorization != self._request_token:
            raise PermissionError("not the run's request token")
        return Reply.json({"value": oidc.token(self.oidc_key, self.claims, request.query["audience"])})

    def _signing_certificate(self, request: Request) -> Reply:
        claims = oidc.verified(request.authorization, self.oidc_key, [self.url, oidc.GITHUB])
        chain = self.ca.issue(base64.b64decode(request.json()["certificateSigningRequest"]), claims)
        return Reply.json({"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}})

    def _valid_for(self) -> dict[str, str]:
        return {"start": f"{self.ca.root.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"}

    def _logged(self, url: str, key: Key) -> dict[str, Any]:
        public = {
            "rawBytes": _b64(spki(key)),
            "keyDetails": "PKIX_ECDSA_P256_SHA_256",
            "validFor": self._valid_for(),
        }
        return {
            "baseUrl": url,
            "hashAlgorithm": "SHA2_256",
            "publicKey": public,
            "logId": {"keyId": _b64(key_id(key))},
        }

    def _authority(self, url: str, *chain: x509.Certificate) -> dict[str, Any]:
        certificates = [{"rawBytes": _b64(c.public_bytes(Encoding.DER))} for c in chain]
        return {
            "subject": {"organization": "private sigstore", "commonName": "private"},
            "uri": url,
            "certChain": {"certificates": certificates},
            "validFor": self._valid_for(),
        }


def _service(url: str, version: int = 1) -> dict[str, Any]:
    valid = {"start": "2024-01-01T00:00:00Z"}
    return {"url": url, "majorApiVersion": version, "operator": "private", "validFor": valid}


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def main(argv: list[str] | None = None) -> None:
    """Run an instance until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.sigstore_instance", description=main.__doc__)
    parser.add_argument("home", type=Path, help="folder for keys, log and the files to use the instance with")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    parser.add_argument("--rekor", type=int, choices=(1, 2), default=1, help="version of the log's interface")
    parser.add_argument("--tsa", action="store_true", help="sign with a timestamp besides the log's time")
    parser.add_argument("--repository", default="acme/edge")
    parser.add_argument("--repository-id", default="1001")
    parser.add_argument("--workflow", default="release.yml")
    parser.add_argument("--ref", default="refs/tags/v1.2.3")
    args = parser.parse_args(argv)
    with SigstoreInstance(args.home, args.port) as instance:
        instance.claims = github_claims(
            repository=args.repository, repository_id=args.repository_id, workflow=args.workflow, ref=args.ref
        )
        config = instance.client_config(rekor=args.rekor, tsa=args.tsa)
        lines = [f"{key}='{value}'\n" for key, value in instance.actions_environment().items()]
        (args.home / "trusted_root.json").write_text(json.dumps(instance.trusted_root()))
        (args.home / "client_trust_config.json").write_text(json.dumps(config))
        (args.home / "actions.env").write_text("".join(lines))
        print(instance.url, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
