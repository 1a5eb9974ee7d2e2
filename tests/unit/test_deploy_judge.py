"""What decides a step: golden answers through the gateway, and figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.catalog.golden import GoldenPrompt
from pipeline.deploy.canary import Judged
from pipeline.deploy.judge import Round, Said, answers, both, figures, troubles, worth_asking
from pipeline.deploy.settings import Gate
from pipeline.errors import ToolError
from pipeline.manifest.statement import VariantEntry
from pipeline.peers.affinity import weight
from pipeline.ports.prometheus import Sample
from tests.support.deploys import Line

NEW, OLD = "n" * 64, "o" * 64
PROMPTS = [
    GoldenPrompt(id=f"g{i}", family="lookup", prompt=f"what is {i}?", expected=str(i), max_tokens=4) for i in range(3)
]


def asked(servers: list[str], right: float = 1.0) -> Round:
    return Round("tiny-edge-arm64", PROMPTS, servers, NEW, right, fleet=3)


def fleet(*names: str, new: str = "", wrong: str = "") -> Callable[[str, GoldenPrompt, str], Said]:
    """A gateway that sends each session to one of its servers; `new` is on the new release, `wrong` answers wrong."""

    def ask(_variant: str, prompt: GoldenPrompt, session: str) -> Said:
        name = max(names, key=lambda n: weight(session, n))
        text = "never" if name == wrong else prompt.expected
        return Said(text, name, NEW if name == new else OLD)

    return ask


def test_the_new_server_answers_every_prompt() -> None:
    """In sessions that belong to it; what others answer instead counts too."""
    assert answers(fleet("node-0", "node-1", "node-2", new="node-2"), asked(["node-2"]), 5.0) == Judged(5.0)


@pytest.mark.parametrize("there", [("node-0", "node-2"), ("node-0",)], ids=["of the new release", "of the old one"])
def test_wrong_answers_end_it(there: tuple[str, ...]) -> None:
    """Whoever gives them: clients get them either way."""
    found = answers(fleet(*there, new="node-2", wrong=there[-1]), asked(["node-2"], 0.9), 5.0)
    assert found.bad
    assert there[-1] in found.bad


def test_a_share_of_wrong_answers_may_be_allowed() -> None:
    """Near ties may fall otherwise in a batch."""
    one_wrong = iter(["never"])

    def ask(_variant: str, prompt: GoldenPrompt, _session: str) -> Said:
        return Said(next(one_wrong, prompt.expected), "node-2", NEW)

    assert answers(ask, asked(["node-2"], 0.6), 5.0) == Judged(5.0)


def test_no_answer_is_a_wrong_one() -> None:
    """A refusal, or a gateway that is gone."""
    found = answers(lambda *_: Said(None, problem="status 503"), asked(["node-2"]), 5.0)
    assert found.bad
    assert "status 503" in found.bad


@pytest.mark.parametrize("new", ["", "node-1"], ids=["still the old model", "another one's"])
def test_a_server_that_is_not_asked_is_waited_for(new: str) -> None:
    """Right answers of others, or with another model file, say nothing of it."""
    found = answers(fleet("node-0", "node-1", "node-2", new=new), asked(["node-2"]), 5.0)
    assert (found.bad, found.pending) == (None, "the gateway sends nothing to node-2 yet")


@pytest.mark.parametrize("new", [1, 1000], ids=["one is new", "all are"])
def test_of_a_thousand_servers_the_new_ones_are_found(new: int) -> None:
    """The gateway chooses, and is asked in sessions for which it chooses them: a few requests, to a sample."""
    names = [f"node-{i}" for i in range(1000)]
    count = 0

    def ask(_variant: str, prompt: GoldenPrompt, session: str) -> Said:
        nonlocal count
        count += 1
        name = max(names, key=lambda n: weight(session, n))
        return Said(prompt.expected, name, NEW if name in names[-new:] else OLD)

    thousand = Round("tiny-edge-arm64", PROMPTS, names[-new:], NEW, 1.0, fleet=1000)
    assert answers(ask, thousand, 5.0) == Judged(5.0)
    assert count < 40


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> VariantEntry:
    return Line(tmp_path_factory.mktemp("line")).accepted(1).manifest.variant("tiny-edge-arm64")


def test_only_what_was_answered_right_is_asked(entry: VariantEntry) -> None:
    """A prompt that the evidence has no right answer to judges nobody; of each family so many."""
    prompts = [PROMPTS[0].model_copy(update={"id": name}) for name in ("g0", "g1", "g2")]
    assert [p.id for p in worth_asking(prompts, entry, 1)] == ["g1"]
    assert worth_asking(prompts, entry.model_copy(update={"evidence": []}), 1) == []


def test_without_prompts_nothing_is_proven(entry: VariantEntry) -> None:
    """That ends a rollout."""
    assert answers(fleet("node-0"), Round(entry.name, [], ["node-0"], NEW, 1.0, 1), 5.0).bad


GATES = [Gate(name="burn", query="a", most=6.0), Gate(name="refused", query="b", most=0.0)]


def _gone(_: str) -> list[Sample]:
    raise ToolError("it does not answer", hint="look")


FIGURES = [
    pytest.param(lambda q: [Sample(0.0)], None, None, id="within"),
    pytest.param(lambda q: [Sample(1.0), Sample(6.1)] if q == "a" else [Sample(0.0)], "burn is 6.1", None, id="over"),
    pytest.param(lambda q: [], None, "there is no figure", id="absent"),
    pytest.param(_gone, None, "it does not answer", id="gone"),
]


@pytest.mark.parametrize(("query", "bad", "pending"), FIGURES)
def test_figures(query: Callable[[str], list[Sample]], bad: str | None, pending: str | None) -> None:
    """The largest of a query's values counts; what is not there is waited for."""
    found = figures(query, GATES, 5.0)
    assert (found.bad is None) is (bad is None)
    assert (bad or "") in (found.bad or "")
    assert (pending or "") in (found.pending or "")


def test_either_holds_it_up() -> None:
    """Of two judgements the worse counts."""
    assert both(Judged(1.0, pending="p"), Judged(2.0, bad="b")) == Judged(2.0, "b", "p")


def test_what_servers_say_is_wrong_with_them() -> None:
    """Only a server that was heard of lately is believed to have failed: one that is silent may be on its way."""
    servers = [
        {"name": "a", "heard": True, "state": "failed", "problem": "answers otherwise"},
        {"name": "b", "heard": False, "state": "failed", "problem": "connection refused"},
        {"name": "c", "heard": True, "state": "ready", "problem": "stays on release 1"},
    ]
    assert troubles([{"endpoints": servers}]) == {"a": "serves nothing: answers otherwise"}
