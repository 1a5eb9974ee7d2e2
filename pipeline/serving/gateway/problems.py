"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`.

Rules: a message says what to do, and nothing of another client's request or of the network behind the gateway.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.peers.asgi import error
from pipeline.serving.decision import Declined, Denied

_MESSAGES = {
    Denied.NO_ENDPOINT: "no server with a variant of the current release is there; try again later",
    Denied.NO_EDGE: "sensitive requests stay at the edge, and no edge node is there; try again later",
    Denied.NO_VARIANT: "no server has this variant loaded; name a tier or 'auto'",
    Denied.TOO_LONG: "the prompt and max_tokens exceed the context of every server; shorten the prompt",
    Denied.DEADLINE: "no server can answer before the deadline; allow more time",
    Denied.OVERLOADED: "all servers are busy; try again later",
    Denied.BATCH_YIELDS: "batch requests wait while interactive ones need the servers; try again later",
    Denied.CORE_DOWN: "the large servers are unreachable, and smaller answers are not allowed; try again later",
}


@dataclass(eq=False)
class Problem(Exception):  # noqa: N818 - what went wrong is not always an error of ours
    """Why a request got no answer; `kind` is OpenAI's `type`, `code` one word for programs."""

    status: int
    code: str
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    retry_after_s: int | None = None

    def body(self) -> bytes:
        """Return the JSON that a client gets."""
        return error(self.message, self.kind, code=self.code, param=self.param)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers besides the usual ones."""
        return [] if self.retry_after_s is None else [(b"retry-after", str(self.retry_after_s).encode())]


def declined(found: Declined) -> Problem:
    """Return a refusal of routing as a client sees it."""
    kind = {400: "invalid_request_error", 429: "rate_limit_error"}.get(found.status, "server_error")
    return Problem(found.status, found.reason, _MESSAGES[found.reason], kind, retry_after_s=found.retry_after_s)


def overloaded() -> Problem:
    """Return what a client gets whom this gateway itself has no place for."""
    return declined(Declined(Denied.OVERLOADED, retry_after_s=1))


def upstream(code: str = "upstream_failed") -> Problem:
    """Return what a client gets when every endpoint that was tried failed."""
    message = "every server that was tried failed; try again"
    return Problem(502, code, message, "server_error", retry_after_s=1)


def timeout() -> Problem:
    """Return what a client gets whose deadline passed."""
    return Problem(504, "timeout", "the answer was not complete in time; allow more time", "server_error")


def event(problem: Problem) -> bytes:
    """Return a problem as the last event of a stream that had begun."""
    return b"data: " + problem.body() + b"\n\n"
