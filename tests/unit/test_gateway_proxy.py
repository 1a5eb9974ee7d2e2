"""The gateway between clients and servers that fail: what a client gets, and what a server is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.manifest.encoding import sha256
from pipeline.peers.status import Pool, Served, State
from tests.support.gateways import CHAT, LARGE, QUICK, TINY, Running, chat, running
from tests.support.releases import gguf_bytes
from tests.support.upstreams import (
    Behaviour,
    breaks_after,
    closes,
    completion,
    hangs,
    piece,
    raw,
    replies,
    says,
)

Scenario = Callable[[Running], Awaitable[None]]
SOME = [piece(None), piece("h"), piece("e")]
STREAM = {"stream": True}


def play(root: Path, scenario: Scenario, **given: Any) -> None:
    """Run a scenario in a gateway."""

    async def run() -> None:
        async with running(root, **given) as found:
            await scenario(found)

    asyncio.run(run())


def test_an_answer_says_where_it_comes_from(tmp_path: Path) -> None:
    """A short prompt is answered by the edge, byte for byte; the headers name pool, endpoint, file and reason."""

    async def scenario(at: Running) -> None:
        reply = await at.ask(chat(temperature=0, sensitive=False, session="s"))
        assert (reply.status, reply.body) == (200, completion("hello", TINY))
        told = {k: v for k, v in reply.headers.items() if k.startswith("x-edge")}
        assert told == {
            "x-edge-pool": "edge",
            "x-edge-endpoint": "pi",
            "x-edge-variant": TINY,
            "x-edge-digest": at.servers["pi"].digest,
            "x-edge-reason": "tiny_edge",
        }
        (call,) = at.servers["pi"].calls
        assert call.document == {**chat(temperature=0), "model": TINY, "stream": False}
        (line,) = at.lines
        assert (line["reason"], line["outcome"], line["generated"]) == ("tiny_edge", "answered", 2)
        assert "hi" not in line.values()

    play(tmp_path, scenario, edge={"pi": says("hello")}, nvlink={"gpu": says("large")})


@pytest.mark.parametrize(
    ("fields", "headers", "endpoint", "reason"),
    [
        pytest.param({"priority": "batch"}, {}, "gpu", "batch", id="batch"),
        pytest.param({}, {"x-edge-priority": "batch"}, "gpu", "batch", id="batch by header"),
        pytest.param({"max_tokens": 900}, {}, "gpu", "long_generation", id="long"),
        pytest.param({"model": "large"}, {}, "gpu", "hint", id="large"),
        pytest.param({"model": LARGE}, {}, "gpu", "pinned", id="variant"),
        pytest.param({"sensitive": True, "max_tokens": 900}, {}, "pi", "sensitive", id="sensitive"),
        pytest.param({"max_tokens": 900}, {"x-edge-sensitive": "true"}, "pi", "sensitive", id="sensitive by header"),
        pytest.param({"sensitive": False, "max_tokens": 900}, {"x-edge-sensitive": "1"}, "pi", "sensitive", id="both"),
        pytest.param(
            {"max_tokens": 900},
            {"x-edge-sensitive": "on", "X-Edge-Sensitive": "false"},
            "pi",
            "sensitive",
            id="sensitive by one of two headers",
        ),
    ],
)
def test_what_a_request_says_of_itself_counts(
    tmp_path: Path, fields: dict[str, Any], headers: dict[str, str], endpoint: str, reason: str
) -> None:
    """The gateway's own fields and headers reach routing, and are not passed on."""

    async def scenario(at: Running) -> None:
        reply = await at.ask(chat(**fields), headers=headers)
        assert (reply.headers["x-edge-endpoint"], reply.headers["x-edge-reason"]) == (endpoint, reason)
        assert {"sensitive", "priority"} & set(at.servers[endpoint].calls[0].document) == set()

    play(tmp_path, scenario, edge={"pi": says("a")}, nvlink={"gpu": says("b")})


FAILING: list[Any] = [
    pytest.param(closes, id="closes"),
    pytest.param(replies(500, b"{}"), id="500"),
    pytest.param(replies(503, b"loading"), id="503"),
    pytest.param(replies(404, b"{}"), id="404"),
    pytest.param(replies(200, b"garbage"), id="garbage"),
    pytest.param(replies(200, b"[1]"), id="no object"),
    pytest.param(replies(200, b'{"choices": []}'), id="no choice"),
    pytest.param(replies(200, b'{"choices": [{"message": 5}]}'), id="wrong type"),
    pytest.param(replies(200, b'{"choices": [' + b'{"text": "' + b"x" * 3000 + b'"}]}'), id="oversized"),
    pytest.param(replies(302, b"{}"), id="redirect"),
    pytest.param(raw(b"SSH-2.0-OpenSSH\r\n"), id="no HTTP"),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{"), id="cut body"),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\n{"), id="cut chunk"),
]
SMALL = {"limits": {"first_s": 0.5, "chunk_s": 0.5, "answer_s": 20.0, "connect_s": 1.0, "answer_bytes": 2000}}


@pytest.mark.parametrize(
    ("behave", "stream"),
    [
        *(pytest.param(*p.values, stream, id=f"{p.id}-{stream}") for p in FAILING for stream in (False, True)),
        # A whole answer may take long: a server that hangs then is hedged, or found out by its state.
        pytest.param(hangs, True, id="hangs-True"),
    ],
)
def test_a_failure_before_the_first_token_is_not_seen(tmp_path: Path, behave: Behaviour, stream: bool) -> None:
    """Whatever the nearest server does, another one answers, and the reason says that it is a second attempt."""

    async def scenario(at: Running) -> None:
        reply = await at.ask(chat(stream=stream, session="s"))
        assert reply.status == 200
        assert (reply.text if stream else reply.json["choices"][0]["message"]["content"]) == "large"
        assert (reply.headers["x-edge-endpoint"], reply.headers["x-edge-reason"]) == ("gpu", "retry")
        assert at.lines[0]["failures"] == 1

    play(tmp_path, scenario, edge={"pi": behave}, nvlink={"gpu": says("large")}, **SMALL)


def test_a_refused_connection_is_not_seen(tmp_path: Path) -> None:
    """A server that is gone before its state was looked at again costs an attempt, not a request."""

    async def scenario(at: Running) -> None:
        await at.servers["pi"].stop()
        assert (await at.ask(chat())).headers["x-edge-endpoint"] == "gpu"

    play(tmp_path, scenario, edge={"pi": says("a")}, nvlink={"gpu": says("b")}, poll_s=60.0)


def test_the_only_server_is_asked_again(tmp_path: Path) -> None:
    """Where there is no other, a server that dropped a connection gets another chance."""
    behaviours = iter([closes, closes, says("third")])

    async def behave(call: Any) -> None:
        await next(behaviours)(call)

    async def scenario(at: Running) -> None:
        assert (await at.ask(chat())).json["choices"][0]["message"]["content"] == "third"

    play(tmp_path, scenario, edge={"pi": behave})


@pytest.mark.parametrize("stream", [pytest.param(False, id="whole"), pytest.param(True, id="streamed")])
def test_what_waits_for_a_server_that_falls_silent_goes_elsewhere(tmp_path: Path, stream: bool) -> None:
    """A frozen server answers nothing, its state neither: who waits for it is answered by another one."""

    async def scenario(at: Running) -> None:
        asking = asyncio.ensure_future(at.ask(chat(stream=stream)))
        await at.until(lambda: bool(at.servers["pi"].calls))
        at.servers["pi"].frozen = True
        reply = await asking
        assert (reply.headers["x-edge-endpoint"], reply.headers["x-edge-reason"]) == ("gpu", "retry")

    limits = {"connect_s": 0.1, "first_s": 60.0}
    play(tmp_path, scenario, edge={"pi": hangs}, nvlink={"gpu": says("large")}, limits=limits)


def test_when_all_fail_the_client_is_told(tmp_path: Path) -> None:
    """After the last attempt the error has OpenAI's shape, and says when to try again."""

    async def scenario(at: Running) -> None:
        reply = await at.ask(chat())
        assert (reply.status, reply.headers["retry-after"]) == (502, "1")
        assert reply.json["error"]["code"] == "upstream_failed"

    play(tmp_path, scenario, edge={"pi": closes}, nvlink={"gpu": closes}, effort={"circuit_failures": 50})


@pytest.mark.parametrize("how", ["close", "cut", "hang", "error", "end"])
def test_an_answer_that_breaks_off_goes_on_elsewhere(tmp_path: Path, how: str) -> None:
    """The client sees one stream with one id, nothing twice, nothing missing, however its server died."""

    async def scenario(at: Running) -> None:
        reply = await at.ask(chat(stream=True, session="s", max_tokens=40, temperature=0))
        assert reply.text == "hello"
        assert reply.is_whole
        assert {c["id"] for c in reply.chunks} == {"c"}
        (marked,) = [c["edge"] for c in reply.chunks if "edge" in c]
        assert (marked["endpoint"], marked["reason"], marked["identical"]) == (_other(at), "continued", True)
        rest = at.servers[_other(at)].calls[0].document
        assert rest["messages"][-1] == {"role": "assistant", "content": "he"}
        assert (rest["max_tokens"], rest["continue_final_message"]) == (38, True)
        assert (await at.metrics())['gateway_continuations_total{outcome="same"}'] == 1

    first = breaks_after(SOME, how)
    asked: list[str] = []

    def once(name: str) -> Behaviour:
        async def behave(call: Any) -> None:
            asked.append(name)
            await (first if len(asked) == 1 else says("hello"))(call)

        return behave

    def _other(at: Running) -> str:
        return "b" if asked[0] == "a" else "a"

    play(tmp_path, scenario, edge={"a": once("a"), "b": once("b")}, **SMALL)


def test_another_model_may_go_on_and_says_so(tmp_path: Path) -> None:
    """Where no server has the same file, another variant goes on; it is marked as not identical."""

    async def scenario(at: Running) -> None:
        reply = await at.ask(chat(stream=True, temperature=0))
        assert reply.text == "hello"
        (marked,) = [c["edge"] for c in reply.chunks if "edge" in c]
        assert (marked["variant"], marked["identical"]) == (LARGE, False)

    play(tmp_path, scenario, edge={"pi": breaks_after(SOME)}, nvlink={"gpu": says("hello")})


def test_usage_counts_the_whole_answer(tmp_path: Path) -> None:
    """What the first server generated counts as completion, not as the second one's prompt."""

    async def ends(call: Any) -> None:
        await call.begin()
        await call.chunk(piece("llo", "stop"))
        usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
        await call.chunk(b"data: " + json.dumps({"id": "x", "choices": [], "usage": usage}).encode() + b"\n\n")
        await call.chunk(b"data: [DONE]\n\n")
        await call.raw(b"0\r\n\r\n")

    async def scenario(at: Running) -> None:
        reply = await at.ask(chat(stream=True, stream_options={"include_usage": True}))
        assert reply.chunks[-1]["usage"] == {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}

    play(tmp_path, scenario, edge={"pi": breaks_after(SOME)}, nvlink={"gpu": ends})


def test_an_answer_with_its_last_token_sent_is_ended(tmp_path: Path) -> None:
    """Where nothing is left to generate, the end is the gateway's."""

    async def scenario(at: Running) -> None:
        reply = await at.ask(chat(stream=True, max_tokens=2))
        assert (reply.text, reply.is_whole) == ("he", True)
        assert reply.chunks[-1]["choices"][0]["finish_reason"] == "length"

    play(tmp_path, scenario, edge={"pi": breaks_after(SOME)}, nvlink={"gpu": hangs})


def test_a_finished_answer_without_an_end_is_ended(tmp_path: Path) -> None:
    """A server that dies after the last token but before [DONE] costs nothing."""

    async def scenario(at: Running) -> None:
        reply = await at.ask(chat(stream=True))
        assert (reply.text, reply.is_whole) == ("he", True)

    play(tmp_path, scenario, edge={"pi": breaks_after([*SOME, piece("", "stop")])})


def test_what_nobody_can_continue_ends_with_an_error(tmp_path: Path) -> None:
    """A sensitive answer is not continued in the core: the client gets an error event instead of a silent end."""

    async def scenario(at: Running) -> None:
        reply = await at.ask(chat(stream=True, sensitive=True))
        assert reply.chunks[-1]["error"]["code"] == "stream_broken"
        assert not reply.is_whole
        assert at.servers["gpu"].calls == []

    play(tmp_path, scenario, edge={"pi": breaks_after(SOME)}, nvlink={"gpu": says("x")}, effort={"continuations": 1})


def test_an_answer_with_a_form_ends_with_an_error(tmp_path: Path) -> None:
    """Its rest from another server would begin the form anew: the client is told instead."""

    async def scenario(at: Running) -> None:
        reply = await at.ask(chat(stream=True, temperature=0, grammar='root ::= "he" "llo"'))
        assert (reply.text, reply.chunks[-1]["error"]["code"]) == ("he", "stream_broken")
        assert at.servers["gpu"].calls == []

    play(tmp_path, scenario, edge={"pi": breaks_after(SOME)}, nvlink={"gpu": says("hello")})


@pytest.mark.parametrize("stream", [pytest.param(False, id="whole"), pytest.param(True, id="streamed")])
def test_a_client_that_leaves_frees_its_server(tmp_path: Path, stream: bool) -> None:
    """The connection to the server is cut at once, and the place is free again."""

    async def scenario(at: Running) -> None:
        leave = asyncio.Event()
        asking = asyncio.ensure_future(at.ask(chat(stream=stream), leave=leave))
        await at.until(lambda: bool(at.servers["pi"].calls))
        leave.set()
        await asking
        await asyncio.wait_for(at.servers["pi"].left.wait(), 60)
        assert at.lines[-1]["outcome"] == "left"
        assert (at.gateway.proxy.in_flight, at.gateway.fleet.flights["pi"]) == (0, 0)

    play(tmp_path, scenario, edge={"pi": breaks_after(SOME, "hang") if stream else hangs})


def test_a_client_that_takes_nothing_and_leaves_frees_its_server(tmp_path: Path) -> None:
    """A stream whose head is not taken is closed as any other: nothing counts as under way."""

    async def scenario(at: Running) -> None:
        leave, stuck = asyncio.Event(), asyncio.Event()
        asking = asyncio.ensure_future(at.ask(chat(stream=True), leave=leave, stuck=stuck))
        await stuck.wait()
        leave.set()
        await asking
        await asyncio.wait_for(at.servers["pi"].left.wait(), 60)
        assert at.lines[-1]["outcome"] == "left"
        assert (at.gateway.proxy.in_flight, at.gateway.fleet.flights["pi"]) == (0, 0)

    play(tmp_path, scenario, edge={"pi": breaks_after(SOME, "hang")})


def test_a_slow_server_is_hedged(tmp_path: Path) -> None:
    """After a quantile of the usual time a second server is asked, the faster wins, the other is called off."""

    async def scenario(at: Running) -> None:
        for _ in range(4):
            await at.ask(chat())
        at.servers["pi"].behave = hangs
        reply = await at.ask(chat())
        assert (reply.headers["x-edge-endpoint"], reply.headers["x-edge-reason"]) == ("gpu", "hedge")
        await asyncio.wait_for(at.servers["pi"].left.wait(), 60)
        assert (await at.metrics())["gateway_hedges_total"] == 1

    play(tmp_path, scenario, edge={"pi": says("a")}, nvlink={"gpu": says("b")}, effort={"hedge_after": 4})


def test_a_failing_server_is_left_alone_and_tried_again(tmp_path: Path) -> None:
    """After three failures its circuit opens; when it is well again a probe closes it."""

    async def scenario(at: Running) -> None:
        at.servers["pi"].behave = closes
        for _ in range(3):
            assert (await at.ask(chat())).headers["x-edge-reason"] == "retry"
        assert (await at.ask(chat())).headers["x-edge-reason"] == "not_loaded"
        assert len(at.servers["pi"].calls) == 3
        at.servers["pi"].behave = says("well")
        await asyncio.sleep(0.3)
        assert (await at.ask(chat())).headers["x-edge-endpoint"] == "pi"
        assert (await at.metrics())['gateway_circuit_closed{endpoint="pi",pool="edge"}'] == 1

    play(tmp_path, scenario, edge={"pi": says("a")}, nvlink={"gpu": says("b")}, effort={"circuit_pause_s": 0.2})


def test_the_edge_answers_for_a_core_that_is_gone(tmp_path: Path) -> None:
    """A long answer without the NVLink pool comes from a smaller variant, and is marked."""

    async def scenario(at: Running) -> None:
        await at.servers["gpu"].stop()
        reply = await at.ask(chat(max_tokens=900))
        assert (reply.headers["x-edge-reason"], reply.headers["x-edge-degraded"]) == ("degraded", "true")
        assert at.lines[-1]["degraded"]

    play(tmp_path, scenario, edge={"pi": says("a")}, nvlink={"gpu": says("b")}, poll_s=60.0)


def test_what_a_server_says_is_wrong_with_a_request_reaches_the_client(tmp_path: Path) -> None:
    """A server's 400 is the client's: it is not tried elsewhere, and no circuit hears of it."""
    said = b'{"error": {"message": "no such grammar", "code": 400, "type": "invalid_request_error"}}'

    async def scenario(at: Running) -> None:
        reply = await at.ask(chat())
        assert (reply.status, reply.body) == (400, said)
        assert at.servers["gpu"].calls == []

    play(tmp_path, scenario, edge={"pi": replies(400, said)}, nvlink={"gpu": says("b")})


REJECTS = replies(400, b'{"error": {"message": "seed is not supported", "type": "invalid_request_error"}}')


def test_a_hedge_that_is_rejected_changes_nothing(tmp_path: Path) -> None:
    """What the second server does not take, the slow first one may: its answer is the client's."""

    refused = asyncio.Event()

    async def rejects(call: Any) -> None:
        await REJECTS(call)
        refused.set()

    async def slow(call: Any) -> None:
        await refused.wait()
        await asyncio.sleep(0.2)
        await says("a")(call)

    async def scenario(at: Running) -> None:
        for _ in range(4):
            await at.ask(chat(seed=1))
        at.servers["pi"].behave = slow
        reply = await at.ask(chat(seed=1))
        assert (reply.status, reply.headers["x-edge-endpoint"]) == (200, "pi")
        assert len(at.servers["gpu"].calls) == 1
        assert not any(at.gateway.fleet.flights.values())

    play(tmp_path, scenario, edge={"pi": says("a")}, nvlink={"gpu": rejects}, effort={"hedge_after": 4})


def test_a_server_that_rejects_the_rest_is_passed_over(tmp_path: Path) -> None:
    """An answer that broke off goes on at the next server that takes it; who rejected it is not asked again."""
    behaviours, asked = iter([breaks_after(SOME), REJECTS, REJECTS, says("hello")]), []

    def behaves(name: str) -> Behaviour:
        async def behave(call: Any) -> None:
            asked.append(name)
            await next(behaviours)(call)

        return behave

    async def scenario(at: Running) -> None:
        reply = await at.ask(chat(stream=True, temperature=0))
        assert (reply.text, reply.is_whole) == ("hello", True)
        assert len(asked) == 4
        assert asked[3] not in asked[1:3]
        assert not any(at.gateway.fleet.flights.values())

    play(tmp_path, scenario, edge={name: behaves(name) for name in ("a", "b", "c", "d")})


def test_an_answer_whose_rest_nobody_takes_leaves_nothing(tmp_path: Path) -> None:
    """The client gets an error event, and no rejected continuation counts as under way."""

    async def scenario(at: Running) -> None:
        reply = await at.ask(chat(stream=True))
        assert reply.chunks[-1]["error"]["code"] == "stream_broken"
        assert at.servers["gpu"].calls
        assert not any(at.gateway.fleet.flights.values())

    play(tmp_path, scenario, edge={"pi": breaks_after(SOME)}, nvlink={"gpu": REJECTS}, effort={"continuations": 1})


def test_rejections_are_no_service_times(tmp_path: Path) -> None:
    """How fast a server refuses says nothing of how long its answers take, nor when a second one is to be asked."""

    async def scenario(at: Running) -> None:
        for _ in range(4):
            assert (await at.ask(chat())).status == 400
        assert at.gateway.fleet.members["pi"].service_ms is None
        assert at.gateway.proxy.hedging.delay_s((Pool.EDGE, False)) is None

    play(tmp_path, scenario, edge={"pi": REJECTS}, nvlink={"gpu": says("b")}, effort={"hedge_after": 2})


@pytest.mark.parametrize(
    ("body", "path", "status", "code"),
    [
        pytest.param(b"{", CHAT, 400, "invalid_json", id="no JSON"),
        pytest.param(b"[]", CHAT, 400, "invalid_json", id="no object"),
        pytest.param(b"\xff\xfe", CHAT, 400, "invalid_json", id="no UTF-8"),
        pytest.param(b"[" * 100_000, CHAT, 400, "invalid_json", id="deep"),
        pytest.param({}, CHAT, 400, "invalid_value", id="empty"),
        pytest.param({"model": "auto", "messages": []}, CHAT, 400, "invalid_value", id="no messages"),
        pytest.param({"model": "auto", "messages": "hi"}, CHAT, 400, "invalid_value", id="messages a text"),
        pytest.param(chat(max_tokens="5"), CHAT, 400, "invalid_value", id="max_tokens a text"),
        pytest.param(chat(max_tokens=0), CHAT, 400, "invalid_value", id="max_tokens 0"),
        pytest.param(chat(temperature=9), CHAT, 400, "invalid_value", id="temperature"),
        pytest.param(chat(priority="vip"), CHAT, 400, "invalid_value", id="priority"),
        pytest.param(chat(deadline_ms=-1), CHAT, 400, "invalid_value", id="deadline"),
        pytest.param(chat(model="gpt-4"), CHAT, 404, "model_not_found", id="model"),
        pytest.param({"model": "auto", "prompt": {}}, "/v1/completions", 400, "invalid_value", id="prompt"),
        pytest.param({"prompt": "a", "x": 1}, "/generate", 400, "invalid_value", id="unknown field"),
        pytest.param(chat("x" * (2 << 20)), CHAT, 413, "body_too_large", id="large body"),
        pytest.param(chat(deadline_ms=0.001), CHAT, 503, "deadline", id="deadline too near"),
    ],
)
def test_bad_requests_are_explained(tmp_path: Path, body: Any, path: str, status: int, code: str) -> None:
    """Each has a status, a code and a message in OpenAI's shape, and reaches no server."""

    async def scenario(at: Running) -> None:
        reply = await at.ask(body, path)
        assert (reply.status, reply.json["error"]["code"]) == (status, code)
        assert reply.json["error"]["message"]
        assert at.servers["pi"].calls == []
        assert at.lines[-1]["code"] == code

    play(tmp_path, scenario, edge={"pi": says("a")})


def test_large_headers_are_refused(tmp_path: Path) -> None:
    """Headers have a bound of their own."""

    async def scenario(at: Running) -> None:
        assert (await at.ask(chat(), headers={"x": "y" * 20_000})).status == 431

    play(tmp_path, scenario, edge={"pi": says("a")})


def test_generate_is_the_short_form(tmp_path: Path) -> None:
    """A prompt goes out as a chat's turn; the answer is its text with where it comes from."""

    async def scenario(at: Running) -> None:
        reply = await at.ask({"prompt": "hi", "model_hint": "tiny", "max_tokens": 9}, "/generate")
        assert reply.json["text"] == "hello"
        assert (reply.json["pool"], reply.json["reason"]) == ("edge", "tiny_edge")
        (call,) = at.servers["pi"].calls
        assert (call.path, call.document["messages"]) == (CHAT, [{"role": "user", "content": "hi"}])

    play(tmp_path, scenario, edge={"pi": says("hello")})


def test_interactive_requests_go_before_batch(tmp_path: Path) -> None:
    """With one place, a batch request that came first waits for the interactive one that came after it."""
    free = asyncio.Event()

    async def scenario(at: Running) -> None:
        first = asyncio.ensure_future(at.ask(chat("first")))
        await at.until(lambda: bool(at.servers["gpu"].calls or at.servers["pi"].calls))
        batch = asyncio.ensure_future(at.ask(chat("batch", priority="batch")))
        await at.until(lambda: len(at.gateway.proxy.waiting) == 1)
        urgent = asyncio.ensure_future(at.ask(chat("urgent")))
        await at.until(lambda: len(at.gateway.proxy.waiting) == 2)
        free.set()
        await asyncio.gather(first, batch, urgent)
        assert [line["reason"] for line in at.lines] == ["tiny_edge", "tiny_edge", "batch"]

    async def held(call: Any) -> None:
        await free.wait()
        await says("a")(call)

    limits = {"in_flight": 1, "wait_s": 20.0}
    play(tmp_path, scenario, edge={"pi": held}, nvlink={"gpu": held}, limits=limits)


def test_a_place_that_is_long_in_coming_is_waited_for(tmp_path: Path) -> None:
    """Who waits longer than until the next look at the servers is answered all the same."""

    async def scenario(at: Running) -> None:
        replies = await asyncio.gather(at.ask(chat()), at.ask(chat()))
        assert [reply.status for reply in replies] == [200, 200]

    async def slow(call: Any) -> None:
        await asyncio.sleep(1.0)
        await says("a")(call)

    one = {"status": {"pi": {"slots": 1}}, "policy": {"queue_depth": 0}}
    play(tmp_path, scenario, edge={"pi": slow}, limits={**QUICK, "wait_s": 20.0}, **one)


def test_a_full_queue_refuses(tmp_path: Path) -> None:
    """Beyond the requests at work and those that may wait, the client is told to come back."""

    async def scenario(at: Running) -> None:
        leave = asyncio.Event()
        held = asyncio.ensure_future(at.ask(chat(), leave=leave))
        await at.until(lambda: bool(at.servers["pi"].calls))
        reply = await at.ask(chat())
        assert (reply.status, reply.headers["retry-after"]) == (429, "1")
        leave.set()
        await held

    play(tmp_path, scenario, edge={"pi": hangs}, limits={"in_flight": 1, "waiting": 0})


def test_readiness_has_reasons(tmp_path: Path) -> None:
    """Without an endpoint the gateway is alive but not ready, and says why."""

    async def scenario(at: Running) -> None:
        assert (await at.ask(b"", "/readyz", method="GET")).json["ready"] is True
        at.servers["pi"].status["state"] = State.DRAINING
        await at.until(lambda: at.gateway.fleet.members["pi"].status.state == "draining")  # type: ignore[union-attr]
        reply = await at.ask(b"", "/readyz", method="GET")
        assert (reply.status, reply.json["problems"]) == (503, ["no endpoint is ready with a variant of the release"])
        assert (await at.ask(b"", "/healthz", method="GET")).status == 200
        assert (await at.ask(chat())).json["error"]["code"] == "no_endpoint"

    play(tmp_path, scenario, edge={"pi": says("a")})


def test_a_server_with_another_file_gets_nothing(tmp_path: Path) -> None:
    """What is not of the release is not asked, whatever it calls itself; nor is a server of another pool."""

    async def scenario(at: Running) -> None:
        at.servers["pi"].digest = "f" * 64
        at.servers["two"].status["pool"] = Pool.NVLINK
        await at.until(lambda: at.gateway.problems() != [])
        assert (await at.ask(chat())).status == 503
        assert "nvlink" in at.gateway.fleet.members["two"].problem

    play(tmp_path, scenario, edge={"pi": says("a"), "two": says("b")})


def test_a_server_may_follow_the_channel_sooner_than_the_gateway(tmp_path: Path) -> None:
    """A release that a server is the first to serve is looked for before that counts; no request is refused."""

    async def scenario(at: Running) -> None:
        weights = gguf_bytes(tmp_path, 7)
        at.scene.publish(2, files={f"{TINY}/model.gguf": weights}, valid_days=36500)
        served = Served(
            variant=TINY, model_sha256=sha256(weights), release_line="demo", release_version=2, manifest_sha256="2" * 64
        )
        at.servers["pi"].status["served"] = served
        await at.until(lambda: at.gateway.fleet.members["pi"].status.served == served)  # type: ignore[union-attr]
        reply = await at.ask(chat())
        assert (reply.status, reply.headers["x-edge-digest"]) == (200, served.model_sha256)

    play(tmp_path, scenario, edge={"pi": says("a")}, release_s=600.0)


def test_models_are_the_releases_own(tmp_path: Path) -> None:
    """The list holds the hints and the release's variants; what is nowhere is an error in OpenAI's shape."""

    async def scenario(at: Running) -> None:
        found = (await at.ask(b"", "/v1/models", method="GET")).json["data"]
        assert [m["id"] for m in found] == ["auto", "tiny", "mid", "large", LARGE, TINY, "tiny-edge-x86_64"]
        assert (await at.ask(b"", "/nowhere", method="GET")).json["error"]["code"] == "not_found"
        assert (await at.ask(b"", CHAT, method="GET")).status == 405

    play(tmp_path, scenario, edge={"pi": says("a")})
