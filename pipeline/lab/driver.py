"""Load on a gateway, by Locust (https://locust.io): started beside this process, its figures read when it has ended.

Rules: what is asked are the release's golden prompts, the kinds in fixed shares and order; a request fails where it has
no complete answer.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.catalog.golden import GoldenPrompt
from pipeline.errors import ToolError
from pipeline.lab.tour import long_prompt
from pipeline.manifest.encoding import canonical
from pipeline.ports import beside, files

USERS = 8
_SLOWER = 10  # times the seconds, after which a load is ended however few of its requests were asked
_LONG_TOKENS = 64
_USERS_FILE = Path(__file__).with_name("load.py")
_HINT = "pip install 'edge-release[lab]'"


@dataclass(frozen=True)
class Load:
    """How a gateway is asked: requests a second of all users together, for some seconds.

    Where answers come too slowly for the rate, it takes longer: as many requests are asked on any machine.
    """

    rate: float
    seconds: float

    @property
    def requests(self) -> int:
        """How many are asked."""
        return round(self.rate * self.seconds)


@dataclass(frozen=True)
class Seen:
    """What the users saw of one kind of request."""

    kind: str
    requests: int
    failures: int


def require_locust() -> None:
    """Raise ImportError where Locust is not installed; to import it would replace this process's sockets."""
    if importlib.util.find_spec("locust") is None:
        raise ImportError("no locust", name="locust")


def questions(golden: Sequence[GoldenPrompt]) -> list[dict[str, Any]]:
    """Return what is asked, in order: of 20 requests 13 short, 3 of sessions, 2 sensitive, 2 long; half streamed."""
    found = []
    for number in range(20 * max(1, len(golden) // 20)):
        prompt, place = golden[number * 7 % len(golden)], number % 20
        body: dict[str, Any] = {
            "model": "auto", "messages": [{"role": "user", "content": prompt.prompt}], "max_tokens": prompt.max_tokens,
            "temperature": 0,
        }  # fmt: skip
        kind = "short"
        if place in {3, 8, 13}:
            kind, body["session"] = "session", f"shelf-{place}"
        elif place in {5, 15}:
            kind, body["sensitive"] = "sensitive", True
        elif place in {10, 19}:
            kind, body["messages"] = "long", [{"role": "user", "content": long_prompt(golden)}]
            body["max_tokens"] = _LONG_TOKENS
        if number % 2 == 0:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        found.append({"kind": kind, "body": body})
    return found


async def drive(url: str, golden: Sequence[GoldenPrompt], wanted: Load, folder: Path, name: str) -> list[Seen]:
    """Let users ask a gateway and return what they saw, by kind.

    Args:
        folder: where what is asked, Locust's messages and its figures go, in files named by `name`.

    Raises:
        ToolError: Locust is not there, or has no figures.
    """
    asked, out = folder / f"{name}-asked.json", folder / f"{name}.json"
    out.unlink(missing_ok=True)  # an earlier lab's
    said = {"rate_of_one": wanted.rate / USERS, "requests": wanted.requests, "questions": questions(golden)}
    files.write(asked, canonical(said))
    argv = [
        sys.executable, "-m", "locust", "--locustfile", str(_USERS_FILE), "--headless", "--only-summary", "--host", url,
        "--users", str(USERS), "--spawn-rate", str(USERS), "--run-time", f"{_SLOWER * wanted.seconds:g}s",
        "--stop-timeout", "60", "--exit-code-on-error", "0", "--json-file", str(out.with_suffix("")),
    ]  # fmt: skip
    log = folder / f"{name}.log"
    program = await beside.start(argv, hint=_HINT, env={"EDGE_RELEASE_LOAD": str(asked)}, name="locust", log=log)
    try:
        ended = await program.wait()
    finally:
        program.kill()
    if not out.exists():
        raise ToolError(f"the load has no figures: {ended}", hint=f"see {log}")
    return files.load(out, _parse)


def _parse(text: str, _name: str) -> list[Seen]:
    return [Seen(row["name"], row["num_requests"], row["num_failures"]) for row in json.loads(text)]
