"""Whether the large server answers the golden prompts as the manifest's evidence says.

Rules: some prompts of each family are asked greedily, alone; token ids are those of some runner class's evidence. Paths
and fields are vLLM's, which both engines know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.errors import ToolError
from pipeline.serving.node.probe import Asks, Question


async def check(engine: Asks, name: str, asked: Sequence[Question], ends: frozenset[int]) -> str | None:
    """Return None where a server answers right, else the reason why not.

    Args:
        ends: tokens that end an answer, which vLLM tells of and evidence does not.

    Raises:
        ToolError: the server does not answer.
    """
    if not asked:
        return "the manifest has no evidence of this variant's answers"
    for question in asked:
        message = {"role": "user", "content": question.prompt.prompt}
        found = await engine.post("/tokenize", {"model": name, "messages": [message], "add_generation_prompt": True})
        body = {
            "model": name, "prompt": found.get("tokens"), "max_tokens": question.prompt.max_tokens, "temperature": 0,
            "return_token_ids": True,
        }  # fmt: skip
        tokens = _tokens(await engine.post("/v1/completions", body))
        tokens = tokens[:-1] if tokens and tokens[-1] in ends else tokens
        if tuple(tokens) not in question.answers:
            expected = list(question.answers[0])
            return f"{question.prompt.id} is answered with tokens {tokens}, evidence says {expected}"
    return None


def _tokens(answer: dict[str, Any]) -> list[int]:
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    ids = first.get("token_ids")
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise ToolError("the engine gives no token ids", hint="vLLM from 0.10.2 on has return_token_ids")
    return ids
