"""Whether a server answers right: tokens as evidence says, or a first difference at a near tie."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalog.golden import GoldenPrompt
from pipeline.catalog.names import RunnerClass, Target, Variant
from pipeline.errors import ToolError
from pipeline.manifest.evidence import Agreement, Answer, Certificate
from pipeline.manifest.statement import ModelConfig, VariantEntry
from pipeline.serving.node import probe
from pipeline.serving.node.probe import Question
from tests.support import evidence

EDGE = Variant.parse("tiny-edge-x86_64")


class Scripted:
    """A server that answers greedy questions from a list, and names its two best choices after any tokens."""

    def __init__(self, tokens: Sequence[int], choices: dict[int, float] | None = None) -> None:
        self.tokens, self.choices, self.asked, self.stop = list(tokens), choices or {}, [], "limit"

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((path, body))
        if path == "/apply-template":
            return {"prompt": "<user>" + body["messages"][0]["content"]}
        if path == "/tokenize":
            return {"tokens": [100 + len(body["content"])]}
        if "n_probs" in body:
            top = [{"id": i, "logprob": p} for i, p in self.choices.items()]
            return {"tokens": [1], "completion_probabilities": [{"top_logprobs": top}]}
        return {"tokens": self.tokens, "stop_type": self.stop}


def prompt(name: str = "p", family: str = "f") -> GoldenPrompt:
    return GoldenPrompt(id=name, family=family, prompt="hello", expected="x", max_tokens=3)


def check(server: Scripted, *answers: tuple[int, ...], largest: float = 0.05, templated: bool = True) -> str | None:
    question = Question(prompt(), answers)
    return asyncio.run(probe.check(server, [question], templated=templated, largest=largest))


def test_the_tokens_of_any_evidence_are_right() -> None:
    """One of the runner classes' answers is enough; the prompt is asked greedily, as the checks did."""
    server = Scripted([7, 8, 9])
    assert check(server, (7, 8, 1), (7, 8, 9)) is None
    (_, template), (_, text), (_, asked) = server.asked
    assert template == {"messages": [{"role": "user", "content": "hello"}]}
    assert text == {"content": "<user>hello", "add_special": True, "parse_special": True}
    assert (asked["prompt"], asked["n_predict"], asked["temperature"]) == ([111], 3, 0)
    assert asked["cache_prompt"] is False


def test_without_a_template_the_prompt_stands_as_it_is() -> None:
    """A model without a chat template is asked the bare text."""
    server = Scripted([7])
    assert check(server, (7,), templated=False) is None
    assert [path for path, _ in server.asked] == ["/tokenize", "/completion"]


@pytest.mark.parametrize(
    ("answer", "choices", "largest", "right"),
    [
        pytest.param([7, 5, 9], {5: -1.0, 8: -1.04}, 0.05, True, id="a near tie"),
        pytest.param([7, 5, 9], {5: -1.0, 8: -1.06}, 0.05, False, id="no near tie"),
        pytest.param([7, 5, 9], {5: -1.0, 8: -1.04}, 0.0, False, id="no certificate, no tie"),
        pytest.param([7, 5, 9], {5: -1.0, 6: -1.01}, 0.05, False, id="another token is the second choice"),
        pytest.param([7, 5, 9], {}, 0.05, False, id="the server names no choices"),
        pytest.param([7, 8], {}, 0.05, False, id="too short"),
        pytest.param([7, 8, 9, 1], {}, 0.05, False, id="too long"),
        pytest.param([], {}, 0.05, False, id="nothing"),
    ],
)  # fmt: skip
def test_a_difference_must_be_a_near_tie(
    answer: list[int], choices: dict[int, float], largest: float, right: bool
) -> None:
    """Other tokens are right only where the expected one is the second choice, as near as the certificate allows."""
    wrong = check(Scripted(answer, choices), (7, 8, 9), largest=largest)
    assert (wrong is None) is right
    if wrong is not None:
        assert wrong == f"p is answered with tokens {answer}, evidence says [7, 8, 9]"


def test_the_choices_are_those_after_the_shared_tokens() -> None:
    """A tie is looked for where the answers part: after the prompt and what both begin with."""
    server = Scripted([7, 8, 5], {5: -1.0, 9: -1.01})
    assert check(server, (7, 8, 9)) is None
    assert server.asked[-1][1]["prompt"] == [111, 7, 8]


def test_the_end_token_is_no_part_of_an_answer() -> None:
    """What ends by an end token is compared without it; ending too early may be a near tie."""
    server = Scripted([7, 8, 2])
    server.stop = "eos"
    assert check(server, (7, 8)) is None
    server.choices = {2: -1.0, 9: -1.04}
    assert check(server, (7, 8, 9)) is None
    assert check(server, (7, 8, 9), largest=0.01) is not None


def test_without_evidence_the_answer_is_no() -> None:
    """There must be something to compare with."""
    wrong = asyncio.run(probe.check(Scripted([1]), [], templated=True, largest=0.05))
    assert wrong == "the manifest has no evidence of this variant's answers"


@pytest.mark.parametrize("tokens", [None, "7", [7, "8"], {"a": 1}])
def test_an_answer_without_token_ids_is_no_answer(tokens: Any) -> None:
    """A program that does not return ids cannot be judged."""
    server = Scripted([])
    server.tokens = tokens
    with pytest.raises(ToolError, match="without token ids"):
        check(server, (7,))


def _entry(*answers: Answer, certificate: Certificate | None = None) -> VariantEntry:
    found = evidence.evidence(EDGE).model_copy(update={"answers": list(answers)})
    config = ModelConfig(architecture="llama", parameters=1, layers=1, hidden=64, vocabulary=3, context=64)
    file = {"name": "model.gguf", "size": 1, "sha256": "0" * 64}
    return VariantEntry(
        name=EDGE.name, tier=EDGE.tier, target=EDGE.target, format="gguf", files=[file], model=config, recipe={},
        evidence=[found, found.model_copy(update={"runner": RunnerClass.EMULATED})], measurements=[],
        certificate=certificate,
    )  # fmt: skip


def test_some_prompts_of_each_family_are_asked() -> None:
    """Each family's first prompts that there is evidence for; equal answers of two classes count once."""
    entry = _entry(*(Answer(id=i, tokens=[n], passed=True) for n, i in enumerate(["a2", "b1", "b2", "b3"])))
    prompts = [prompt("a1", "a"), prompt("a2", "a"), *(prompt(f"b{n}", "b") for n in (1, 2, 3)), prompt("c1", "c")]
    assert [q.prompt.id for q in probe.questions(prompts, entry)] == ["a2", "b1"]
    assert [q.prompt.id for q in probe.questions(prompts, entry, 2)] == ["a2", "b1", "b2"]
    assert probe.questions(prompts, entry)[0].answers == ((0,),)


def test_only_a_certificate_that_holds_allows_ties() -> None:
    """The margin is the certificate's; a broken one allows none."""
    agreement = Agreement(target=Target.ARM64, mean_kl=0.0, max_kl=0.0, differences=[], holds=True)
    made = Certificate(
        model_sha256="0" * 64, reference=Target.X86_64, prompts=["a"], margin_max=0.05, mean_kl_max=1.0,
        targets=[agreement],
    )  # fmt: skip
    broken = made.model_copy(update={"targets": [agreement.model_copy(update={"holds": False})]})
    assert [probe.margin(_entry(certificate=c)) for c in (made, broken, None)] == [0.05, 0.0, 0.0]


TOKENS = st.lists(st.integers(0, 3), max_size=6).map(tuple)


@given(TOKENS, st.lists(TOKENS, min_size=1, max_size=3).map(tuple))
def test_ties_stand_where_answers_part(answer: tuple[int, ...], answers: tuple[tuple[int, ...], ...]) -> None:
    """Every tie names the shared beginning and the expected token behind it, which differs from the answer's."""
    found = probe.ties(Question(prompt(), answers), answer)
    assert not found or answer not in answers
    for tie in found:
        at = len(tie.shared)
        assert tie.shared == answer[:at]
        assert any(expected[: at + 1] == (*tie.shared, tie.expected) for expected in answers)
        assert answer[at : at + 1] != (tie.expected,)
