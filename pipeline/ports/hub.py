"""Hugging Face hub: one repository at one commit, into a cache whose files are named by their digests.

Rules: every byte is checked against the digest the commit names; what was received is kept, and the next run asks only
for the rest (`Range`); of several processes one fetches a file and the others wait for it; weights come as safetensors
or not at all, and no code is fetched. The cache has the layout of Hugging Face's own
(`models--org--name/blobs/<etag>`), so what `transformers` fetched already is used. The library's `snapshot_download`
throws a partial file away when its process ends, hence the loop over files here.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from http import HTTPStatus
from io import RawIOBase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm import tqdm

from pipeline.errors import PipelineError, StageError, ToolError
from pipeline.ports.files import locked, sha256_file

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_S = 10
TRIES = 3  # connections that bring nothing, one after the other
ALLOWED = (
    "model*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt",
    "LICENSE*", "README.md",
)  # fmt: skip


@dataclass(frozen=True)
class RemoteFile:
    """A file of a commit: its size in bytes and the digest git gives it (sha256 where stored with LFS, else sha1)."""

    name: str
    size: int
    digest: str

    def __post_init__(self) -> None:
        """Raise ValueError for a name that leaves the folder or a digest that is none."""
        path = PurePosixPath(self.name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"unsafe file name {self.name!r}")
        if len(self.digest) not in {40, 64} or not set(self.digest) <= set("0123456789abcdef"):
            raise ValueError(f"{self.name}: {self.digest!r} is no digest")

    def is_right(self, path: Path) -> bool:
        """Whether there is a file at `path` with the bytes the commit names."""
        if not path.exists() or path.stat().st_size != self.size:
            return False
        return (sha256_file(path) if len(self.digest) == 64 else _git_blob_id(path)) == self.digest


@dataclass(frozen=True)
class Hub:
    """A hub, who asks, and where its files are kept."""

    endpoint: str
    token: str | None
    cache: Path

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Hub:
        """Return the hub that HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE and HF_HOME name; no token file is read."""
        home = Path(env.get("HF_HOME") or "~/.cache/huggingface")
        return cls(
            (env.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/"),
            env.get("HF_TOKEN") or None,
            Path(env.get("HF_HUB_CACHE") or home / "hub").expanduser(),
        )

    def files(self, repo: str, revision: str) -> tuple[RemoteFile, ...]:
        """Return the files of a commit that a release may use, sorted by name.

        Raises:
            StageError: there is no such repository or commit, or it names a file in a way it may not.
            ToolError: the hub cannot be reached or refuses.
        """
        found = self._siblings(repo, revision)
        try:
            return tuple(sorted((_remote(s) for s in found if _allowed(s.rfilename)), key=lambda f: f.name))
        except (ValueError, TypeError) as e:
            raise ToolError(f"{self.endpoint}: {repo}: {e}", hint="do not use this repository") from e

    def download(self, repo: str, revision: str, file: RemoteFile) -> Path:
        """Return the cached file, after fetching what is missing of it.

        Raises:
            StageError: the disk is full.
            ToolError: the hub cannot be reached, refuses, stops half-way, or sends other bytes than the commit names.
        """
        blob = self.cache / f"models--{repo.replace('/', '--')}" / "blobs" / file.digest
        if file.is_right(blob):
            return blob.resolve()
        try:
            with locked(blob.with_name(f"{file.digest}.lock")):
                if not file.is_right(blob):  # whoever held the lock may have fetched it
                    self._fetch(repo, revision, file, blob)
        except PipelineError:
            raise
        except Exception as e:  # the library raises httpx's, its own and OSError's, all meaning: not fetched
            raise self._translate(e, f"{repo}/{file.name}") from e
        return blob.resolve()

    def _fetch(self, repo: str, revision: str, file: RemoteFile, blob: Path) -> None:
        partial = blob.with_name(f"{file.digest}.partial")
        self._complete(repo, revision, file, partial)
        if not file.is_right(partial):
            partial.unlink()
            raise ToolError(
                f"{self.endpoint}: {repo}/{file.name}: other bytes than commit {revision[:12]} names",
                hint="run it again; if it stays so, do not use this endpoint",
            )
        partial.replace(blob)

    def _siblings(self, repo: str, revision: str) -> list[Any]:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint, token=self.token or False, library_name="edge-release")
        try:
            info = api.model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
        except Exception as e:  # the library raises httpx's, its own and JSON's, all meaning: no list of files
            raise self._translate(e, f"{repo} at {revision[:12]}") from e
        if info.sha != revision:
            raise ToolError(
                f"{self.endpoint}: {repo}: asked for {revision}, got {info.sha}", hint="do not use this endpoint"
            )
        return list(info.siblings or ())

    def _complete(self, repo: str, revision: str, file: RemoteFile, partial: Path) -> None:
        """Append to `partial` what it lacks."""
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(repo, file.name, revision=revision, endpoint=self.endpoint)
        with partial.open("ab", buffering=0) as f, _bar(file) as bar:
            if f.tell() > file.size:
                f.truncate(0)
            tries = TRIES
            while (had := f.tell()) < file.size:
                broken = self._append(url, f, bar)
                tries = TRIES if f.tell() > had else tries - 1
                if tries == 0:
                    raise broken or EOFError("the server sends less than the commit names")
            os.fsync(f.fileno())

    def _append(self, url: str, f: RawIOBase, bar: tqdm[NoReturn]) -> Exception | None:
        """Ask for what follows and write every piece as it comes; return what broke the connection off, if anything."""
        import httpx2  # huggingface_hub's own client
        from huggingface_hub import get_session, hf_raise_for_status

        headers = {"Accept-Encoding": "identity", "User-Agent": "edge-release", "Range": f"bytes={f.tell()}-"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
                hf_raise_for_status(response)
                if response.status_code != HTTPStatus.PARTIAL_CONTENT:
                    f.truncate(0)
                bar.n = f.tell()
                for piece in response.iter_raw():
                    f.write(piece)
                    bar.update(len(piece))
        except httpx2.TransportError as e:
            return e
        return None

    def _translate(self, error: Exception, what: str) -> PipelineError:
        from huggingface_hub import errors

        where = f"{self.endpoint}: {what}"
        if isinstance(error, errors.HfHubHTTPError):
            return _refused(error, where)
        if isinstance(error, errors.OfflineModeIsEnabled):
            return ToolError(f"{where}: HF_HUB_OFFLINE forbids it", hint="unset HF_HUB_OFFLINE")
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            return StageError(
                f"{what}: cannot write into {self.cache}: {error.strerror}", hint="free space, or set HF_HUB_CACHE"
            )
        reason = " ".join(str(error).split()) or type(error).__name__
        return ToolError(
            f"{where}: {reason}", hint="check HF_ENDPOINT and the network; what was received is kept, run it again"
        )


def _refused(error: HfHubHTTPError, where: str) -> PipelineError:
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            return ToolError(
                f"{where}: the repository is gated",
                hint="accept its terms on its page, then set HF_TOKEN to a token that may read it",
            )
        case errors.RevisionNotFoundError():
            return StageError(f"{where}: no such revision", hint="pin a commit that the repository has")
        case errors.RepositoryNotFoundError():
            return StageError(
                f"{where}: no such repository, or it is private",
                hint="mend the name, or set HF_TOKEN to a token that may read it",
            )
    status = error.response.status_code
    if status in {401, 403}:
        return ToolError(f"{where}: refused with status {status}", hint="set HF_TOKEN to a valid token")
    return ToolError(f"{where}: status {status}", hint="try again later")


def _bar(file: RemoteFile) -> tqdm[NoReturn]:
    return tqdm(total=file.size, desc=file.name, unit="B", unit_scale=True, file=sys.stderr, disable=None)


def _allowed(name: str) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in ALLOWED)


def _remote(sibling: Any) -> RemoteFile:
    digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    return RemoteFile(sibling.rfilename, int(sibling.size), str(digest))


def _git_blob_id(path: Path) -> str:
    # Git's name of a file: sha1 over a header and its bytes (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects).
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
