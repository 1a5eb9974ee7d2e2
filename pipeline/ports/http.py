"""One HTTP question and its answer, for what asks now and then.

Rules: times and sizes are bounded; a status of 400 and above is an answer, no connection is an error; nothing of a
header that was sent is in a message.
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import ToolError

MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class Answer:
    """A status, headers in small letters, and a body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the document it holds; raises ToolError where that is none."""
        try:
            return json.loads(self.body)
        except ValueError as e:
            said = self.body[:80].decode(errors="replace")
            raise ToolError(
                f"answered with status {self.status} and no JSON: {said!r}", hint="is this its address?"
            ) from e


def ask(
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] = {},
    *,
    context: ssl.SSLContext | None = None,
    timeout_s: float = 30.0,
) -> Answer:
    """Send a GET, or a POST of `body`, and return the answer; raises ToolError where there is none."""
    if urlsplit(url).scheme not in {"http", "https"}:
        raise ToolError(f"{url} is no address", hint="it starts with http:// or https://")
    request = urllib.request.Request(url, body, dict(headers))  # noqa: S310 - the scheme was looked at
    try:
        with urllib.request.urlopen(request, timeout=timeout_s, context=context) as found:  # noqa: S310
            return _read(found)
    except urllib.error.HTTPError as e:
        with e:
            return _read(e)
    except (OSError, HTTPException, ValueError) as e:
        reason = e.reason if isinstance(e, urllib.error.URLError) else e
        said = " ".join(str(reason).split()) or type(reason).__name__
        raise ToolError(
            f"{url} does not answer: {said}", hint="is it up, and its certificate of an authority known here?"
        ) from e


def _read(found: Any) -> Answer:
    data = found.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ToolError(f"{found.url} answers with more than {MAX_BYTES} bytes", hint="is this its address?")
    return Answer(int(found.status), {k.lower(): v for k, v in found.headers.items()}, data)
