"""A policy that was pushed counts wherever one is asked for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.serving.decision import Counted
from pipeline.serving.gateway.ask import Kind, parse
from pipeline.serving.gateway.fleet import Fleet
from pipeline.serving.gateway.overrides import Overrides
from pipeline.serving.gateway.question import question
from pipeline.serving.gateway.settings import Settings
from tests.support.gateways import chat


class Asked:
    """A counter that remembers up to how many tokens a bound was enough."""

    counted = Counted.TOKENIZER

    def __init__(self) -> None:
        self.enough: list[float] = []

    async def count(self, texts: Sequence[str], *, chat: bool, enough: float = 0) -> tuple[int, Counted]:
        self.enough.append(enough)
        return 1, self.counted


def test_a_pushed_policy_says_up_to_where_a_bound_is_enough(tmp_path: Path) -> None:
    """Prompts are counted where the pushed limit lies, not where the settings had it."""
    settings, counter = Settings(), Asked()
    fleet = Fleet.of(settings, time.monotonic)
    overrides = Overrides(fleet, tmp_path / "overrides.json", settings.policy)
    ask = parse(Kind.CHAT, json.dumps(chat()).encode(), {})

    async def scenario() -> None:
        await question(ask, counter, fleet)
        await overrides.push(b'{"version": 2, "tiny_prompt_tokens": 10}')
        await question(ask, counter, fleet)

    asyncio.run(scenario())
    assert counter.enough == [63, 9]
