"""The gateway's pure parts: settings, events of a stream, races between attempts, hedging's budget, the queue."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import CatalogError
from pipeline.peers.status import Pool
from pipeline.serving.decision import Choice, Priority, Reason
from pipeline.serving.gateway import payload, sse, wire
from pipeline.serving.gateway.ask import Ask, Kind, parse
from pipeline.serving.gateway.attempts import Hedge, first
from pipeline.serving.gateway.hedging import Hedging
from pipeline.serving.gateway.problems import Problem
from pipeline.serving.gateway.queueing import Waiting
from pipeline.serving.gateway.settings import Effort, Settings, parse_settings, with_endpoints
from pipeline.serving.gateway.upstream import Fault, UpstreamError
from tests.support.upstreams import piece

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("edge", "named"),
    [
        pytest.param([], "no endpoint", id="none"),
        pytest.param(["pi-1:8080"], "address", id="no scheme"),
        pytest.param(["ftp://pi"], "address", id="another scheme"),
        pytest.param(["http://me:secret@pi"], "address", id="a user"),
        pytest.param(["http://pi", "http://pi"], "same name", id="twice"),
    ],
)
def test_endpoints_of_flags_are_checked(edge: list[str], named: str) -> None:
    """What is no address, or stands twice, is refused before the gateway starts."""
    with pytest.raises(CatalogError, match=named):
        with_endpoints(Settings(), edge, [])


def test_endpoints_of_flags_join_those_of_the_file() -> None:
    """A flag's endpoint is named by its host and port."""
    text = "endpoints: [{name: gpu, url: 'http://gpu:8000/', pool: nvlink}]\nlimits: {in_flight: 9}"
    found = with_endpoints(parse_settings(text, "f"), ["https://pi-1:8080"], [])
    assert [(e.name, e.pool, e.base) for e in found.endpoints] == [
        ("gpu", Pool.NVLINK, "http://gpu:8000"), ("pi-1:8080", Pool.EDGE, "https://pi-1:8080")
    ]  # fmt: skip
    assert found.endpoints[0].status_url == "http://gpu:8000/status"
    assert found.limits.in_flight == 9


def test_the_documented_settings_are_read() -> None:
    """The example in docs/gateway.md is what the parser takes."""
    text = (ROOT / "docs/gateway.md").read_text(encoding="utf-8")
    example = text.split("```yaml\n", 1)[1].split("```", 1)[0]
    assert parse_settings(example, "docs/gateway.md").endpoints


texts = st.lists(st.text(max_size=4).filter(bool), max_size=8)


@given(texts, st.lists(st.integers(1, 4), max_size=8), st.booleans())
def test_what_a_client_got_is_read_back(pieces: list[str], sizes: list[int], finished: bool) -> None:
    """The text of any blocks is that of their pieces, wherever the blocks were cut."""
    events = [piece(None), *map(piece, pieces), *([piece("", "stop")] if finished else [])]
    blocks, at = [], 0
    for size in [*sizes, len(events)]:
        blocks.append(b"".join(events[at : at + size]))
        at += size
    found = sse.so_far(blocks)
    assert (found.text, found.pieces, found.finished, found.plain) == ("".join(pieces), len(pieces), finished, True)


@given(st.binary(max_size=80))
def test_any_bytes_are_some_events(data: bytes) -> None:
    """Nothing a server sends breaks the reader."""
    found = sse.so_far([data, b"data: " + data + b"\n\n"])
    assert isinstance(found.text, str)
    assert len(sse.healthy(data)) <= len(data) + 2
    assert sse.continued(data + b"\n\n", found, {"a": 1}) is not None


@pytest.mark.parametrize(
    "event",
    [
        pytest.param({"choices": [{"index": 1, "delta": {"content": "a"}}]}, id="second choice"),
        pytest.param({"choices": [{"index": 0, "delta": {"tool_calls": [{}]}}]}, id="tool"),
        pytest.param({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]}, id="reasoning"),
    ],
)
def test_what_is_no_plain_text_is_not_continued(event: dict[str, Any]) -> None:
    """Several choices, tools and reasoning cannot be given back as a turn's text."""
    ask = parse(Kind.CHAT, json.dumps({"model": "auto", "messages": [{"role": "user"}]}).encode(), {})
    assert not payload.can_continue(ask, sse.so_far([sse.event(event)]))
    assert payload.can_continue(ask, sse.so_far([piece("a")]))


SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    ("fields", "continues"),
    [
        pytest.param({}, {Kind.CHAT, Kind.COMPLETIONS}, id="free"),
        pytest.param({"grammar": 'root ::= "a"'}, set(), id="grammar"),
        pytest.param({"grammar": ""}, {Kind.CHAT, Kind.COMPLETIONS}, id="empty grammar"),
        pytest.param({"json_schema": SCHEMA}, set(), id="json_schema"),
        pytest.param({"json_schema": None}, {Kind.CHAT, Kind.COMPLETIONS}, id="no json_schema"),
        pytest.param({"guided_regex": "a+"}, set(), id="guided_regex"),
        pytest.param({"structured_outputs": {"choice": ["a"]}}, set(), id="structured_outputs"),
        pytest.param({"response_format": {"type": "json_object"}}, set(), id="json_object"),
        pytest.param(
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, set(), id="schema"
        ),
        pytest.param({"response_format": "json"}, set(), id="a format nobody knows"),
        pytest.param({"response_format": {"type": "text"}}, {Kind.CHAT, Kind.COMPLETIONS}, id="text"),
        pytest.param({"echo": True}, {Kind.CHAT}, id="echo"),
    ],
)
def test_what_has_a_form_is_not_continued(fields: dict[str, Any], continues: set[Kind]) -> None:
    """A grammar would begin anew with the rest and an echo would come twice, so nobody is asked to go on."""
    bodies = {Kind.CHAT: {"messages": [{"role": "user", "content": "a"}]}, Kind.COMPLETIONS: {"prompt": "a"}}
    asks = [parse(kind, json.dumps({"model": "auto", **body, **fields}).encode(), {}) for kind, body in bodies.items()]
    assert {a.kind for a in asks if payload.can_continue(a, sse.so_far([piece("{")]))} == continues


def test_a_text_completion_goes_on_from_its_prompt() -> None:
    """The rest of a text completion is asked for by prompt and text so far, with what is left of max_tokens."""
    ask = parse(Kind.COMPLETIONS, b'{"model": "auto", "prompt": "a", "max_tokens": 5}', {})
    before = sse.so_far([sse.event({"id": "x", "choices": [{"text": "b", "index": 0, "finish_reason": None}]})])
    assert json.loads(payload.rest(ask, "v", before)) == {"model": "v", "prompt": "ab", "max_tokens": 4, "stream": True}
    tokens = parse(Kind.COMPLETIONS, b'{"model": "auto", "prompt": [1, 2]}', {})
    assert not payload.can_continue(tokens, before)
    assert tokens.given_tokens == 2


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "messages", "prompt", "role", "content", "max_tokens", "stream", "n"]), inner, max_size=5)), st.sampled_from(Kind))  # fmt: skip
def test_any_json_is_a_request_or_a_problem(document: Any, kind: Kind) -> None:
    """No body raises anything but a problem of the client's."""
    try:
        ask = parse(kind, json.dumps(document).encode(), {b"x-edge-deadline-ms": b"soon"})
    except Problem as e:
        assert e.status == 400
    else:
        assert payload.body(ask, "v")


def _asked(given: list[tuple[bytes, bytes]], **fields: Any) -> Ask:
    body = {"model": "auto", "prompt": "a", **fields}
    return parse(Kind.COMPLETIONS, json.dumps(body).encode(), wire.by_name([(b"host", b"a"), *given]))


@pytest.mark.parametrize(
    ("values", "sensitive"),
    [
        pytest.param([], False, id="absent"),
        *(pytest.param([v], True, id=v) for v in ("true", "True", "1", "yes", "ON", " on ")),
        *(pytest.param([v], False, id=v) for v in ("false", "FALSE", "0", "no", "off")),
        *(pytest.param([v], None, id=v or "empty") for v in ("", "y", "t", "truee", "sensitive", "null", "\xe9")),
        pytest.param(["false", "true"], True, id="twice, the last true"),
        pytest.param(["true", "false"], True, id="twice, the first true"),
        pytest.param(["no", "false"], False, id="twice, none true"),
        pytest.param(["true,false"], True, id="joined"),
        pytest.param(["true", "maybe"], None, id="twice, one unknown"),
    ],
)
def test_a_sensitive_request_is_never_guessed_not_to_be(values: list[str], sensitive: bool | None) -> None:
    """One yes of several is enough, and what is neither yes nor no is a problem that names the header."""
    given = [(b"x-edge-sensitive", v.encode("latin-1")) for v in values]
    if sensitive is None:
        with pytest.raises(Problem) as e:
            _asked(given)
        assert (e.value.status, e.value.param) == (400, "x-edge-sensitive")
        return
    assert _asked(given).sensitive is sensitive
    assert _asked(given, sensitive=True).sensitive


def test_a_field_that_says_nothing_leaves_its_header() -> None:
    """The body's field counts before the header, unless it is null."""
    given = [(b"x-edge-priority", b"batch"), (b"x-edge-deadline-ms", b"5")]
    found = _asked(given, priority=None, deadline_ms=7)
    assert (found.priority, found.deadline_ms) == (Priority.BATCH, 7)


@pytest.mark.parametrize(
    ("header", "values"),
    [
        pytest.param("priority", ["Batch"], id="priority"),
        pytest.param("priority", ["batch", "interactive"], id="two priorities"),
        *(pytest.param("deadline-ms", [v], id=f"deadline {v}") for v in ("", "soon", "-1", "nan", "inf", "5s")),
        pytest.param("deadline-ms", ["5", "9"], id="two deadlines"),
    ],
)
def test_headers_that_mean_nothing_are_refused(header: str, values: list[str]) -> None:
    """A priority or deadline that cannot be read is not taken for none."""
    with pytest.raises(Problem) as e:
        _asked([(f"x-edge-{header}".encode(), v.encode()) for v in values])
    assert (e.value.status, e.value.param) == (400, header.replace("-", "_"))


@dataclass
class Answer:
    """An answer that knows whether it was closed."""

    name: str
    is_rejection: bool = False
    closed: bool = False

    def close(self) -> None:
        self.closed = True


CHOICES = tuple(Choice(Pool.EDGE, name, "v", "0" * 64) for name in ("a", "b", "c"))


def test_the_slower_of_two_is_called_off() -> None:
    """A hedge's winner is the answer; the loser is cancelled, and closed where it came at the last moment."""
    cancelled: list[str] = []

    async def attempt(choice: Choice) -> Answer:
        try:
            await asyncio.sleep(3600 if choice.endpoint == "a" else 0)
        except asyncio.CancelledError:
            cancelled.append(choice.endpoint)
            raise
        return Answer(choice.endpoint)

    async def run() -> None:
        won = await first(CHOICES, attempt, 3, Hedge(0.01, lambda: True))
        assert (won.answer.name, won.why) == ("b", Reason.HEDGE)
        await asyncio.sleep(0)
        assert cancelled == ["a"]

    asyncio.run(run())


def test_two_answers_at_once_are_one_answer() -> None:
    """Where both come in the same moment one is used and the other closed."""
    answers = {c.endpoint: Answer(c.endpoint) for c in CHOICES}

    async def run() -> None:
        both = asyncio.Event()

        async def attempt(choice: Choice) -> Answer:
            if choice.endpoint == "b":
                both.set()
            await both.wait()
            return answers[choice.endpoint]

        won = await first(CHOICES, attempt, 3, Hedge(0.01, lambda: True))
        await asyncio.sleep(0)
        closed = {name for name, a in answers.items() if a.closed}
        assert won.answer.name not in closed
        assert closed == {"a", "b"} - {won.answer.name}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("does", "asked", "wins"),
    [
        pytest.param({"a": "rejects"}, "a", ("a", None), id="the first at once"),
        pytest.param({"a": "slow", "b": "rejects"}, "ab", ("a", None), id="a hedge"),
        pytest.param({"a": "late rejects", "b": "slow"}, "ab", ("b", Reason.HEDGE), id="the first, a hedge runs"),
        pytest.param({"a": "late rejects", "b": "late fails"}, "ab", ("a", None), id="the first, its hedge fails"),
        pytest.param({"a": "late rejects", "b": "rejects"}, "ab", ("a", None), id="both"),
        pytest.param({"a": "slow fails", "b": "rejects"}, "abc", ("c", Reason.RETRY), id="a hedge, the first fails"),
        pytest.param({"a": "fails", "b": "rejects"}, "abc", ("c", Reason.RETRY), id="a further one"),
        pytest.param({"a": "fails", "b": "fails", "c": "rejects"}, "abc", ("c", Reason.RETRY), id="the last one"),
        pytest.param({"a": "fails", "b": "rejects", "c": "fails"}, "abc", ("b", Reason.RETRY), id="all others fail"),
    ],
)
def test_a_rejection_wins_no_race(does: dict[str, str], asked: str, wins: tuple[str, Reason | None]) -> None:
    """The first endpoint's rejection is the answer where it is alone, another's where nobody answers; all else is closed."""
    answers: dict[str, Answer] = {}

    async def attempt(choice: Choice) -> Answer:
        what = does.get(choice.endpoint, "")
        answer = answers[choice.endpoint] = Answer(choice.endpoint, what.endswith("rejects"))
        await asyncio.sleep({"late": 0.05, "slow": 0.1}.get(what.partition(" ")[0], 0))
        if what.endswith("fails"):
            raise UpstreamError(Fault.CLOSED, "no")
        return answer

    won = asyncio.run(first(CHOICES, attempt, 3, Hedge(0.01, lambda: True)))
    assert ("".join(answers), (won.answer.name, won.why)) == (asked, wins)
    assert all(a.closed for a in answers.values() if a.is_rejection and a is not won.answer)


def test_attempts_are_bounded() -> None:
    """The last failure comes out after as many attempts as are allowed, going round where endpoints are few."""
    asked: list[str] = []

    async def attempt(choice: Choice) -> Answer:
        asked.append(choice.endpoint)
        raise UpstreamError(Fault.CONNECT, "no")

    with pytest.raises(UpstreamError):
        asyncio.run(first(CHOICES[:2], attempt, 3))
    assert asked == ["a", "b", "a"]


def test_hedges_cost_a_budget() -> None:
    """One request in twenty may be asked twice; before enough was seen none is."""
    hedging = Hedging(Effort(hedge_after=4))
    kind = (Pool.EDGE, True)
    assert hedging.delay_s(kind) is None
    for seconds in (0.1, 0.2, 0.3, 0.4):
        hedging.saw(kind, seconds)
    assert hedging.delay_s(kind) == 0.4
    assert hedging.delay_s((Pool.NVLINK, True)) is None
    spent = sum(hedging.spend() for _ in range(100) for _ in [hedging.saw(kind, 0.1)])
    assert 5 <= spent <= 7


def test_the_queue_is_bounded_and_in_order() -> None:
    """Interactive before batch, first come first served within a class, nobody beyond the bound."""

    async def run() -> None:
        waiting, order = Waiting(3), []

        async def wait(name: str, priority: Priority) -> None:
            if await waiting.wait(waiting.ticket(priority), 5):
                order.append(name)

        classes = {"b1": Priority.BATCH, "i1": Priority.INTERACTIVE, "i2": Priority.INTERACTIVE}
        tasks = [asyncio.ensure_future(wait(n, p)) for n, p in classes.items()]
        await asyncio.sleep(0)
        assert not await waiting.wait(waiting.ticket(Priority.INTERACTIVE), 5)
        assert not await waiting.wait(waiting.ticket(Priority.INTERACTIVE), 0)
        for _ in tasks:
            waiting.wake()
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
        assert order == ["i1", "i2", "b1"]

    asyncio.run(run())


def test_who_waits_again_keeps_its_place() -> None:
    """A look at the servers in between leaves nothing behind, and nobody who came later is woken before."""

    async def run() -> None:
        waiting = Waiting(2)
        early, late = waiting.ticket(Priority.INTERACTIVE), waiting.ticket(Priority.INTERACTIVE)
        assert await waiting.wait(early, 0.01)
        assert len(waiting) == 0
        second = asyncio.ensure_future(waiting.wait(late, 5))
        again = asyncio.ensure_future(waiting.wait(early, 5))
        await asyncio.sleep(0)
        assert len(waiting) == 2
        waiting.wake()
        await asyncio.sleep(0.01)
        assert (again.done(), second.done(), len(waiting)) == (True, False, 1)
        assert await again
        second.cancel()

    asyncio.run(run())
