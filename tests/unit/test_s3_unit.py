"""A registry in S3, against moto and against a server that only refuses; a real server is in tests/integration."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from pipeline.errors import ConflictError, RegistryError
from pipeline.manifest.encoding import sha256
from pipeline.registry.s3 import Limits, S3Store, connect
from pipeline.registry.store import open_store, silent
from tests.support.contract import DATA, DIGEST, StoreContract, overtaken

SECRET = "very-secret-key"
ONCE = Limits(connect=1, read=2, attempts=1)


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Credentials of nobody, and no profile of the machine's."""
    none = str(tmp_path_factory.mktemp("aws") / "none")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", none)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", none)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """The one client, as `connect` makes it, and its bucket."""
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield connect("bucket", "").client


@pytest.fixture
def prefix() -> str:
    """A part of the bucket that no other test uses."""
    return secrets.token_hex(8)


class TestS3Store(StoreContract):
    """A bucket keeps the rules of every store."""

    @pytest.fixture
    def store(self, client: Any, prefix: str) -> S3Store:
        return S3Store(client, "bucket", f"some/{prefix}", ONCE)


def test_objects_lie_below_the_prefix(client: Any, prefix: str) -> None:
    """The address's path is the prefix of every key, and nothing of another prefix is seen."""
    name = "releases/demo/0000000001.json"
    open_store(f"s3://bucket/{prefix}/").create(name, b"1")
    assert S3Store(client, "bucket", prefix, ONCE).read(name, 9) == b"1"
    assert S3Store(client, "bucket", prefix[:-1], ONCE).names("releases/demo/") == []
    keys = [o["Key"] for o in client.list_objects_v2(Bucket="bucket", Prefix=prefix)["Contents"]]
    assert keys == [f"{prefix}/{name}"]


def test_a_writer_that_is_overtaken_is_told(client: Any, prefix: str) -> None:
    """The server decides who was first, not the look taken before."""
    name = "releases/demo/0000000001.json"
    mine = connect("bucket", prefix, ONCE)
    overtaken(mine.client, "bucket", f"{prefix}/{name}")
    with pytest.raises(ConflictError):
        mine.create(name, b"mine")
    assert S3Store(client, "bucket", prefix, ONCE).read(name, 99) == b"another's"


def test_a_writer_that_is_written_over_is_told(client: Any, prefix: str) -> None:
    """Where a server knows no conditions, whoever reads back another's bytes did not win."""
    name = "releases/demo/0000000001.json"
    mine = connect("bucket", prefix, ONCE)
    overtaken(mine.client, "bucket", f"{prefix}/{name}", when="after")
    with pytest.raises(ConflictError):
        mine.create(name, b"mine")
    assert S3Store(client, "bucket", prefix, ONCE).read(name, 99) == b"another's"


def test_large_files_go_up_in_parts(client: Any, prefix: str, tmp_path: Path) -> None:
    """A file larger than a part arrives whole, with its progress."""
    data = b"0123456789abcdef" * (12 << 16)
    (tmp_path / "large").write_bytes(data)
    done: list[int] = []
    store = S3Store(client, "bucket", prefix, Limits(part=5 << 20))
    assert store.put_blob(sha256(data), tmp_path / "large", lambda d, t, label: done.append(d))
    assert store.blob_size(sha256(data)) == len(data)
    assert done[-1] == len(data)
    assert len(done) > 2


class _Refusing(BaseHTTPRequestHandler):
    """Answers everything with one S3 error."""

    code = "AccessDenied"
    status = 403

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = f"<Error><Code>{self.code}</Code><Message>no {SECRET}</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Refusing]]:
    class Handler(_Refusing):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    yield Handler
    server.shutdown()
    thread.join()
    server.server_close()


SAYS = {
    "SignatureDoesNotMatch": (403, "secret key is wrong", "AWS_SECRET_ACCESS_KEY"),
    "InvalidAccessKeyId": (403, "access key is unknown", "AWS_ACCESS_KEY_ID"),
    "ExpiredToken": (400, "session token has expired", "log in"),
    "AccessDenied": (403, "no permission", "s3:PutObject"),
    "NoSuchBucket": (404, "bucket does not exist", "create it"),
    "RequestTimeTooSkewed": (403, "clock is wrong", "set the clock"),
    "InternalError": (500, "server refuses", "log"),
}


@pytest.mark.parametrize("code", SAYS)
def test_each_refusal_of_a_server_is_told_apart(code: str, refusing: type[_Refusing], tmp_path: Path) -> None:
    """What the server refuses is said in words, with what to do next and without the secret."""
    refusing.status, what, hint = SAYS[code]
    refusing.code = code
    (tmp_path / "f").write_bytes(DATA)
    store = connect("b", "p", ONCE)
    calls = (
        lambda: store.read("releases/demo/0000000001.json", 9),
        lambda: store.create("releases/demo/0000000001.json", b""),
        lambda: store.names("releases/demo/"),
        lambda: store.put_blob(DIGEST, tmp_path / "f", silent),
    )
    for call in calls:
        with pytest.raises(RegistryError) as caught:
            call()
        assert what in caught.value.message
        assert hint in caught.value.hint
        assert SECRET not in caught.value.message + caught.value.hint
        assert not isinstance(caught.value, ConflictError)


def test_missing_credentials_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials the error names the variables that give them."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(RegistryError) as caught:
        connect("bucket", "").read("releases/demo/0000000001.json", 9)
    assert "no credentials" in caught.value.message
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_an_unknown_profile_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that does not exist ends in one error."""
    monkeypatch.setenv("AWS_PROFILE", "nobody-has-this")
    with pytest.raises(RegistryError) as caught:
        connect("b", "")
    assert "AWS_PROFILE" in caught.value.hint


def test_a_name_that_is_no_buckets_is_explained() -> None:
    """An impossible bucket name is said to be one."""
    with pytest.raises(RegistryError) as caught:
        connect("b?", "").names("releases/demo/")
    assert "s3://bucket/prefix" in caught.value.hint
