"""Locust's part of the lab: users who ask the gateway, each at a rate of its own, and look at every answer.

Rules: `driver` says what is asked, how often and how many times, in the file that EDGE_RELEASE_LOAD names; bodies are
taken in turn, and the last user who finds none left ends the load; an answer that breaks off is a failure although its
status is 200. Nothing of this project is imported here, and nothing imports this: Locust puts sockets of its own in the
place of the standard library's.
"""

from __future__ import annotations

import json
import os
from itertools import count
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant_throughput, task
from locust.exception import StopUser

_LOAD: dict[str, Any] = json.loads(Path(os.environ["EDGE_RELEASE_LOAD"]).read_text(encoding="utf-8"))
_NUMBER = count()


class Client(FastHttpUser):  # type: ignore[misc] # Locust's are untyped
    """One user."""

    wait_time = constant_throughput(_LOAD["rate_of_one"])

    @task  # type: ignore[untyped-decorator]
    def ask(self) -> None:
        """Ask the next question and look at the answer."""
        number = next(_NUMBER)
        if number >= _LOAD["requests"]:
            if number == _LOAD["requests"] + self.environment.parsed_options.num_users - 1:  # all others have stopped
                self.environment.runner.quit()
            raise StopUser
        asked = _LOAD["questions"][number % len(_LOAD["questions"])]
        name = "streamed" if asked["body"].get("stream") else "whole"
        with self.client.post(
            "/v1/chat/completions", json=asked["body"], name=f"{asked['kind']}, {name}", catch_response=True
        ) as answer:
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code}: {(answer.text or '')[:200]}")
            elif asked["body"].get("stream") and not (answer.text or "").rstrip().endswith("data: [DONE]"):
                answer.failure("the stream broke off")
