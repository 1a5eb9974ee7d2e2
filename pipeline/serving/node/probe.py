"""Whether a server answers the golden prompts as the manifest's evidence says.

Rules: some prompts of each family are asked greedily, alone, without the prompt cache, as the checks asked them. Tokens
are those of some runner class's evidence; where they are not, the first difference must stand at a near tie: the other
token is the server's second choice, and the gap of both is at most the certificate's `margin_max`. Without evidence
there is nothing to compare with, and the answer is no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.catalog.golden import GoldenPrompt
from pipeline.errors import ToolError
from pipeline.manifest.statement import VariantEntry

PER_FAMILY = 1


class Asks(Protocol):
    """What is asked of a server; raises ToolError where it does not answer."""

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON object that a question is answered with."""
        ...


@dataclass(frozen=True)
class Question:
    """A golden prompt, and the token ids that evidence says it is answered with, one list a runner class."""

    prompt: GoldenPrompt
    answers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Tie:
    """Where an answer leaves the expected one: so many tokens are shared, then another one is expected."""

    shared: tuple[int, ...]
    expected: int


def questions(
    prompts: Sequence[GoldenPrompt], entry: VariantEntry, per_family: int = PER_FAMILY
) -> tuple[Question, ...]:
    """Return the first prompts of each family that there is evidence for."""
    asked: dict[str, int] = {}
    found = []
    for prompt in prompts:
        answers = tuple({tuple(a.tokens): None for e in entry.evidence for a in e.answers if a.id == prompt.id})
        if answers and asked.get(prompt.family, 0) < per_family:
            asked[prompt.family] = asked.get(prompt.family, 0) + 1
            found.append(Question(prompt, answers))
    return tuple(found)


def margin(entry: VariantEntry) -> float:
    """Return the gap of two logits that counts as a tie, by the variant's certificate; 0 where none holds."""
    return entry.certificate.margin_max if entry.certificate and entry.certificate.holds else 0.0


def ties(question: Question, answer: Sequence[int]) -> tuple[Tie, ...]:
    """Return where an answer leaves each expected one; nothing where it is one of them."""
    if tuple(answer) in question.answers:
        return ()
    found = []
    for expected in question.answers:
        pairs = enumerate(zip(answer, expected, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), len(answer))
        if at < len(expected):  # behind its end nothing is expected that could be a second choice
            found.append(Tie(expected[:at], expected[at]))
    return tuple(found)


def is_tie(choices: Sequence[Mapping[str, Any]], expected: int, largest: float) -> bool:
    """Return whether a token is among a server's choices (`id`, `logprob`), as near to the best as is allowed."""
    by_id = {choice.get("id"): choice.get("logprob") for choice in choices}
    best = max((p for p in by_id.values() if isinstance(p, float | int)), default=None)
    found = by_id.get(expected)
    return best is not None and isinstance(found, float | int) and best - found <= largest


async def check(engine: Asks, asked: Sequence[Question], *, templated: bool, largest: float) -> str | None:
    """Return None where a server answers right, else the reason why not.

    Args:
        templated: the model file has a chat template.
        largest: gap of two logits that counts as a tie.

    Raises:
        ToolError: the server does not answer.
    """
    if not asked:
        return "the manifest has no evidence of this variant's answers"
    for question in asked:
        ids = await _tokens(engine, question.prompt.prompt, templated=templated)
        answer = await _greedy(engine, ids, question.prompt.max_tokens)
        if tuple(answer["tokens"]) in question.answers:
            continue
        for tie in ties(question, answer["tokens"]):
            choices = await _choices(engine, [*ids, *tie.shared])
            if is_tie(choices, tie.expected, largest):
                break
        else:
            expected = list(question.answers[0])
            return f"{question.prompt.id} is answered with tokens {answer['tokens']}, evidence says {expected}"
    return None


async def _tokens(engine: Asks, prompt: str, *, templated: bool) -> list[int]:
    if templated:
        message = {"role": "user", "content": prompt}
        prompt = str((await engine.post("/apply-template", {"messages": [message]})).get("prompt"))
    found = await engine.post("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})
    return _ids(found.get("tokens"), "/tokenize")


async def _greedy(engine: Asks, ids: Sequence[int], count: int, **more: int) -> dict[str, Any]:
    body = {
        "prompt": ids, "n_predict": count, "temperature": 0, "samplers": ["top_k"], "top_k": 1, "return_tokens": True,
        "cache_prompt": False, **more,
    }  # fmt: skip
    found = await engine.post("/completion", body)
    tokens = _ids(found.get("tokens"), "/completion")
    # llama-server counts the end token as generated, evidence does not.
    return {**found, "tokens": tokens[:-1] if found.get("stop_type") == "eos" else tokens}


async def _choices(engine: Asks, ids: Sequence[int]) -> list[Mapping[str, Any]]:
    found = (await _greedy(engine, ids, 1, n_probs=2)).get("completion_probabilities")
    choices = found[0].get("top_logprobs") if isinstance(found, list) and found and isinstance(found[0], dict) else None
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _ids(value: object, path: str) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(token, int) for token in value):
        raise ToolError(f"llama-server answers {path} without token ids", hint="the release's program is another one")
    return value
