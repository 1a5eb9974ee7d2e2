"""The status page: one HTML document without anything from elsewhere, which asks its own address for the JSON.

Rules: the browser may run this very script and use this very style, known by their digests, and ask this gateway;
nothing else. What the JSON says is put in as text.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from string import Template

_HERE = Path(__file__).parent


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def page() -> tuple[str, dict[str, str]]:
    """Return the page and the headers it is sent with."""
    script, style = _read("page.js"), _read("page.css")
    policy = (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Template(_read("page.html")).substitute(script=script, style=style), headers
