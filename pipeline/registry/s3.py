"""A registry in an S3 bucket; endpoint, region and credentials come from the standard AWS variables or profile.

Rules: an object is created with `If-None-Match: *`, then read back; retries and timeouts are bounded, and a server that
is gone ends in one error; messages carry the server's error code and nothing of the credentials.

A server that ignores `If-None-Match` (Ceph does in versioned buckets): an object that exists is seen before writing and
the loser of a race usually sees the winner's bytes afterwards, but two writers within the same milliseconds may both
believe they won. Publish to such a bucket from one place at a time, or turn versioning off.

An upload that is killed leaves parts behind that cost money and harm nothing: give the bucket a lifecycle rule
`AbortIncompleteMultipartUpload`.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import ConflictError, Refusal, RegistryError, TrustError
from pipeline.registry import layout, streams
from pipeline.registry.store import Progress

_AGAIN = "run it again: what was stored is kept"
_CREDENTIALS = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN or the profile in AWS_PROFILE"
_REFUSED = {
    "SignatureDoesNotMatch": ("the secret key is wrong", _CREDENTIALS),
    "InvalidAccessKeyId": ("the access key is unknown", _CREDENTIALS),
    "InvalidToken": ("the session token is not valid", _CREDENTIALS),
    "ExpiredToken": ("the session token has expired", "log in again"),
    "AccessDenied": ("no permission", "grant s3:GetObject, s3:PutObject and s3:ListBucket below the prefix"),
    "NoSuchBucket": ("the bucket does not exist", "create it, or check its name and AWS_ENDPOINT_URL_S3"),
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "set the clock (timedatectl), then run it again"),
    "PermanentRedirect": ("the bucket lies in another region", "set AWS_DEFAULT_REGION to the bucket's region"),
    "AuthorizationHeaderMalformed": (
        "the bucket lies in another region", "set AWS_DEFAULT_REGION to the bucket's region"
    ),
    "QuotaExceeded": ("the quota is used up", "free space or raise the quota, then " + _AGAIN),
    "NotImplemented": ("the server lacks conditional writes", "use a server that knows 'If-None-Match: *'"),
}  # fmt: skip
_EXISTS = {"PreconditionFailed", "ConditionalRequestConflict"}
_ABSENT = {"NoSuchKey", "404", "NotFound"}


@dataclass(frozen=True)
class Limits:
    """How long a server may take; times in seconds, sizes in bytes."""

    connect: float = 10
    read: float = 60
    attempts: int = 4
    part: int = 64 << 20
    threads: int = 4


def connect(bucket: str, prefix: str, limits: Limits = Limits()) -> S3Store:
    """Return the registry in a bucket.

    Raises:
        RegistryError: there are no credentials, or the profile does not exist.
    """
    import boto3
    from botocore.config import Config

    address = f"s3://{bucket}/{prefix}".rstrip("/")
    config = Config(
        connect_timeout=limits.connect,
        read_timeout=limits.read,
        retries={"total_max_attempts": limits.attempts, "mode": "standard"},
        max_pool_connections=limits.threads + 2,
        # Servers other than AWS's do not all know the newer checksums; every byte is checked against the manifest.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if _has_endpoint() else "auto"},
    )
    with _translated(address):
        client = boto3.session.Session().client("s3", config=config)
    return S3Store(client, bucket, prefix, limits)


def _has_endpoint() -> bool:
    return any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))


class S3Store:
    """A registry in a bucket, below a prefix."""

    def __init__(self, client: Any, bucket: str, prefix: str, limits: Limits) -> None:
        self.client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._limits = limits

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def put_blob(self, digest: str, source: Path, progress: Progress) -> bool:
        from boto3.s3.transfer import TransferConfig

        with source.open("rb") as f:
            before = os.fstat(f.fileno())
            if self.blob_size(digest) == before.st_size:
                return False
            if streams.digest(f) != digest:
                raise _changed(digest)
            config = TransferConfig(
                multipart_threshold=self._limits.part,
                multipart_chunksize=self._limits.part,
                max_concurrency=self._limits.threads,
            )
            key = self._key(layout.blob(digest))
            report = _Sum(progress, before.st_size, digest)
            # boto3 closes what it uploads.
            with _translated(self.url), os.fdopen(os.dup(f.fileno()), "rb") as upload:
                upload.seek(0)
                self.client.upload_fileobj(upload, self._bucket, key, Callback=report, Config=config)
            after = os.fstat(f.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            with _translated(self.url):
                self.client.delete_object(Bucket=self._bucket, Key=key)
            raise _changed(digest)
        return True

    def blob_size(self, digest: str) -> int | None:
        return self._size(layout.blob(digest))

    @contextmanager
    def open_blob(self, digest: str, offset: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        name = layout.blob(digest)
        end = self._size(name) if length is None else offset + length
        if end is None:
            raise TrustError(Refusal.MISSING_FILE, f"the registry lacks the file {digest[:16]}…")
        with _Body(lambda start: self._get(name, start, end), offset, end, self._limits.attempts) as body:
            yield body  # type: ignore[misc]  # a RawIOBase is a BinaryIO in all that is used of it

    def create(self, name: str, data: bytes) -> None:
        exists = ConflictError(f"{name} exists already", hint="another publisher was first; look, then go on")
        if self._size(name) is not None:
            raise exists
        try:
            with _translated(self.url):
                self.client.put_object(Bucket=self._bucket, Key=self._key(name), Body=data, IfNoneMatch="*")
        except _AlreadyThereError as e:
            raise exists from e
        if self.read(name, layout.MAX_RECORD) != data:
            raise exists

    def read(self, name: str, limit: int) -> bytes | None:
        size = self._size(name)
        if size is None:
            return None
        if size > limit:
            raise TrustError(Refusal.OVERSIZED, f"{name} has more than the {limit} bytes that are read")
        with _Body(lambda start: self._get(name, start, size), 0, size, self._limits.attempts) as body:
            return body.readall()

    def names(self, prefix: str, after: str = "") -> list[str]:
        start = self._key(after) if after else ""
        found: list[str] = []
        with _translated(self.url):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._key(prefix), StartAfter=start
            )
            for page in pages:
                found += [item["Key"].removeprefix(self._prefix) for item in page.get("Contents", [])]
        return sorted(name for name in found if not name.endswith("/"))

    def _size(self, name: str) -> int | None:
        # A HEAD's refusal has no body and so no reason; a listing's has one.
        key = self._key(name)
        with _translated(self.url):
            page = self.client.list_objects_v2(Bucket=self._bucket, Prefix=key, MaxKeys=1)
        sizes = {item["Key"]: int(item["Size"]) for item in page.get("Contents", [])}
        return sizes.get(key)

    def _get(self, name: str, start: int, end: int) -> Any:
        with _translated(self.url):
            span = f"bytes={start}-{end - 1}"
            return self.client.get_object(Bucket=self._bucket, Key=self._key(name), Range=span)["Body"]

    def _key(self, name: str) -> str:
        return self._prefix + name


class _Sum:
    """Adds up what the upload's threads report."""

    def __init__(self, progress: Progress, total: int, label: str) -> None:
        self._lock = threading.Lock()
        self._progress = progress
        self._total = total
        self._label = label
        self._done = 0

    def __call__(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._progress(self._done, self._total, self._label)


class _Body(io.RawIOBase):
    """An object's bytes up to `end`; where the connection breaks it goes on from there, a bounded number of times in a
    row."""

    def __init__(self, get: Callable[[int], Any], offset: int, end: int, attempts: int) -> None:
        self._get = get
        self._at = offset
        self._end = end
        self._attempts = attempts
        self._body: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._end:
            return 0
        for attempt in range(self._attempts):
            data = self._attempt(min(len(buffer), self._end - self._at), last=attempt + 1 == self._attempts)
            if data:
                buffer[: len(data)] = data
                self._at += len(data)
                return len(data)
        return 0

    def _attempt(self, count: int, *, last: bool) -> bytes:
        try:
            if self._body is None:
                self._body = self._get(self._at)
            with _translated("the registry"):
                data: bytes = self._body.read(count)
            if not data:
                raise RegistryError("the registry's answer ended early", hint=_AGAIN)
            return data
        except RegistryError:
            self._drop()
            if last:
                raise
            return b""

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def close(self) -> None:
        self._drop()
        super().close()


class _AlreadyThereError(RegistryError):
    """The server refused to overwrite."""


@contextmanager
def _translated(address: str) -> Iterator[None]:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as e:
        code = str(e.response.get("Error", {}).get("Code", "?"))
        if code in _ABSENT:
            raise TrustError(Refusal.MISSING_FILE, f"{address}: an object that was asked for is not there") from e
        raise _refused(address, code) from e
    except (BotoCoreError, Boto3Error) as e:
        raise _unusable(address, e) from e


def _refused(address: str, code: str) -> RegistryError:
    if code in _EXISTS:
        return _AlreadyThereError(f"{address}: exists already", hint=_AGAIN)
    what, hint = _REFUSED.get(code, ("the server refuses", "look at the server's log, or " + _AGAIN))
    return RegistryError(f"{address}: {what} ({code[:60]})", hint=hint)


def _unusable(address: str, error: Exception) -> RegistryError:
    kind = type(error).__name__
    if kind in {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"}:
        return RegistryError(f"{address}: there are no credentials ({kind})", hint=_CREDENTIALS)
    if kind == "NoRegionError":
        return RegistryError(f"{address}: no region is set", hint="set AWS_DEFAULT_REGION")
    if kind in {"ParamValidationError", "InvalidEndpointError"}:
        return RegistryError(f"{address}: not a bucket's address ({kind})", hint="give s3://bucket/prefix")
    return RegistryError(
        f"{address}: the server cannot be reached or went away ({kind})",
        hint=f"check AWS_ENDPOINT_URL_S3 and the network, then {_AGAIN}",
    )


def _changed(digest: str) -> TrustError:
    return TrustError(
        Refusal.TAMPERED,
        f"a file to be stored has another digest than {digest[:16]}…",
        hint="something changed it after it was signed; build and sign the release again",
    )
