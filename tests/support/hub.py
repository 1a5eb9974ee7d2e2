"""A Hugging Face hub on loopback: the routes `huggingface_hub` asks, over plain HTTP, with the faults hubs have."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

REPO = "acme/qwen3-small"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class LocalHub:
    """One repository at one revision; `served` counts body bytes by file, `ranges` lists the Range headers seen.

    The second half of the weights comes `pause_s` seconds after the first.
    """

    files: dict[str, bytes]
    endpoint: str = ""
    token: str | None = None
    gated: bool = False
    cut_after: int | None = None
    stay_up: bool = False
    pause_s: float = 0
    whole_only: bool = False
    down: bool = False
    sha: str = REVISION
    tampered: frozenset[str] = frozenset()
    served: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)

    @classmethod
    def of(cls, folder: Path) -> LocalHub:
        return cls({path.name: path.read_bytes() for path in folder.iterdir()})

    def cut(self, after: int, *, stay_up: bool = False) -> None:
        """Break the next weights off after so many bytes, and be down from then on unless told otherwise."""
        self.cut_after, self.stay_up = after, stay_up

    def mend(self) -> None:
        self.cut_after, self.down = None, False


@contextmanager
def serving(hub: LocalHub) -> Iterator[LocalHub]:
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            auth = self.headers.get("authorization")
            hub.tokens.add(auth.removeprefix("Bearer ") if auth else None)
            path = self.path.partition("?")[0]
            if hub.down:
                self._fail(503, None)
            elif hub.token is not None and auth != f"Bearer {hub.token}":
                self._fail(401, "GatedRepo" if hub.gated else "RepoNotFound")
            elif path.startswith(f"/api/models/{REPO}/revision/"):
                self._info(path.rpartition("/")[2])
            elif path.startswith(f"/{REPO}/resolve/{REVISION}/"):
                self._file(path.rpartition("/")[2], body)
            else:
                self._fail(404, "RepoNotFound")

        def _fail(self, status: int, code: str | None) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _info(self, revision: str) -> None:
            if revision != REVISION:
                self._fail(404, "RevisionNotFound")
                return
            data = json.dumps({"id": REPO, "sha": hub.sha, "siblings": [*map(_sibling, hub.files.items())]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _file(self, name: str, body: bool) -> None:
            if name not in hub.files:
                self._fail(404, "EntryNotFound")
                return
            whole = hub.files[name]
            asked = None if hub.whole_only else self.headers.get("Range")
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            if start:
                hub.ranges.append(f"bytes={start}-")
            part = whole[start:]
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("ETag", f'"{hashlib.sha256(whole).hexdigest()}"')
            self.end_headers()
            if body:
                self._send(name, part)

        def _send(self, name: str, part: bytes) -> None:
            if name in hub.tampered:
                part = bytes(len(part))
            if hub.cut_after is not None and name.endswith(".safetensors"):
                part, hub.cut_after, hub.down = part[: hub.cut_after], None, not hub.stay_up
                self.close_connection = True
            if hub.pause_s and name.endswith(".safetensors"):
                self.wfile.write(part[: len(part) // 2])
                time.sleep(hub.pause_s)
                part, hub.served[name] = part[len(part) // 2 :], hub.served[name] + len(part) // 2
            self.wfile.write(part)
            hub.served[name] += len(part)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _sibling(item: tuple[str, bytes]) -> dict[str, object]:
    name, data = item
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    found: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob}
    if name.endswith(".safetensors"):
        found["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
    return found
