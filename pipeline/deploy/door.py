"""How the deploy job asks: golden prompts as any client does, and a gateway's own view of its servers."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.catalog.golden import GoldenPrompt
from pipeline.deploy import judge
from pipeline.deploy.judge import Said
from pipeline.errors import ToolError
from pipeline.ports import http

PATIENCE_S = 20.0  # for one answer


@dataclass(frozen=True)
class Gateway:
    """A gateway's address for clients, and where its status is; `key` is the API key, where clients need one."""

    url: str
    status_url: str | None = None
    key: str | None = None
    context: ssl.SSLContext | None = None
    admin: ssl.SSLContext | None = None

    def ask(self, variant: str, prompt: GoldenPrompt, session: str) -> Said:
        """Return what a golden prompt is answered with."""
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {self.key}"} if self.key else {})
        url = f"{self.url.rstrip('/')}/v1/chat/completions"
        try:
            answer = http.ask(
                url, judge.body(variant, prompt, session), headers, context=self.context, timeout_s=PATIENCE_S
            )
            document = answer.json()
        except ToolError as e:
            return Said(None, problem=e.message)
        endpoint, digest = answer.headers.get("x-edge-endpoint"), answer.headers.get("x-edge-digest")
        if answer.status != 200:
            return Said(None, endpoint, digest, f"status {answer.status}")
        try:
            return Said(str(document["choices"][0]["message"]["content"]), endpoint, digest)
        except (LookupError, TypeError):
            return Said(None, endpoint, digest, "no completion")

    def troubles(self) -> Mapping[str, str]:
        """Return what servers say is wrong with them; nothing where the status is not to be had."""
        if self.status_url is None:
            return {}
        try:
            answer = http.ask(self.status_url, context=self.admin or self.context, timeout_s=PATIENCE_S)
            document = answer.json()
        except ToolError:
            return {}
        return judge.troubles(document.get("pools", ()) if isinstance(document, dict) else ())
