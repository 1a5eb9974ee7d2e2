"""The endpoint picker's conversations: what a data plane says goes in, decisions come out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ToolError
from pipeline.peers.status import State
from pipeline.serving.decision import Priority
from pipeline.serving.gateway.callers import add_key
from pipeline.serving.picker import messages, protocol
from pipeline.serving.picker.server import Door, check
from tests.support.conversations import BUFFERED, STREAMED, Refused, Running, Sent, head, running
from tests.support.gateways import TINY, chat, until
from tests.support.llama_server import free_port
from tests.support.upstreams import says

Scenario = Callable[[Running], Awaitable[None]]
TWO = {"one": says("x"), "two": says("x")}
CORE = {"gpu": says("x")}
EQUAL = {"near_ms": 1000.0}  # how far endpoints are apart decides nothing here
MODES = pytest.mark.parametrize(
    "mode",
    [pytest.param(BUFFERED, id="buffered"), pytest.param(STREAMED, id="streamed"), pytest.param(None, id="unsaid")],
)


def play(root: Path, scenario: Scenario, **given: Any) -> None:
    """Run a scenario before two nodes and a large server, or those that are given."""

    async def run() -> None:
        async with running(root, **{"edge": TWO, "nvlink": CORE, "policy": EQUAL, **given}) as found:
            await scenario(found)

    asyncio.run(run())


def body(**fields: Any) -> bytes:
    return json.dumps(chat(**fields)).encode()


@MODES
def test_a_request_goes_to_its_endpoint_and_the_fallback(tmp_path: Path, mode: int | None) -> None:
    """The decision comes as a header and as metadata, with the server's body; credentials and our own fields go no further."""

    async def scenario(at: Running) -> None:
        talk = at.conversation(mode=mode)
        pieces = 3 if mode == STREAMED else 1
        sent = await talk.ask(
            body(temperature=0, session="s"), pieces=pieces, authorization="Bearer x", x_request_id="r7"
        )
        assert isinstance(sent, Sent)
        assert [at.address("gpu")] == sent.addresses[2:]
        assert json.loads(sent.body) == {"messages": chat()["messages"], "temperature": 0, "stream": False}
        assert sent.removed == ["authorization", "cookie"]
        assert sent.headers.get("content-length") == (None if mode == STREAMED else str(len(sent.body)))
        first = at.site.servers["one" if sent.addresses[0] == at.address("one") else "two"]
        seen = await talk.answer(served=sent.addresses[0])
        assert seen == {
            "x-request-id": "r7",
            "x-edge-pool": "edge",
            "x-edge-endpoint": "one" if first is at.site.servers["one"] else "two",
            "x-edge-variant": TINY,
            "x-edge-digest": first.digest,
            "x-edge-reason": "affinity",
        }
        talk.exchange.end()
        (line,) = at.site.lines
        assert (line["outcome"], line["reason"], line["failures"]) == ("answered", "affinity", 0)

    play(tmp_path, scenario)


def test_a_fallback_that_answered_is_named_with_its_reason(tmp_path: Path) -> None:
    """Where the second endpoint served, the first one is at fault: after three times its circuit is open."""

    async def scenario(at: Running) -> None:
        names = {at.address(n): n for n in ("one", "two")}
        for _ in range(3):
            talk = at.conversation()
            sent = await talk.ask(body())
            assert isinstance(sent, Sent)
            seen = await talk.answer(served=sent.addresses[1])
            assert isinstance(seen, dict)
            assert (seen["x-edge-endpoint"], seen["x-edge-reason"]) == (names[sent.addresses[1]], "retry")
            assert at.picker.fleet.flights[names[sent.addresses[1]]] == 1
            talk.exchange.end()
        assert not any(at.picker.fleet.flights.values())
        last = await at.conversation().ask(body())
        assert isinstance(last, Sent)
        assert sent.addresses[0] not in last.addresses

    play(tmp_path, scenario, nvlink={})


def test_an_endpoint_alone_is_named_twice(tmp_path: Path) -> None:
    """A kept connection that ends just when it is used costs no request."""

    async def scenario(at: Running) -> None:
        sent = await at.conversation().ask(body())
        assert isinstance(sent, Sent)
        assert sent.addresses == [at.address("one")] * 2

    play(tmp_path, scenario, edge={"one": says("x")}, nvlink={})


def test_a_fallback_may_serve_another_model(tmp_path: Path) -> None:
    """The list goes on to the other pool, and the body fits both; a smaller answer is marked."""

    async def scenario(at: Running) -> None:
        edge, core = {at.address("one"), at.address("two")}, at.address("gpu")
        sent = await at.conversation().ask(body())
        assert isinstance(sent, Sent)
        assert (set(sent.addresses[:2]), sent.addresses[2]) == (edge, core)
        assert "model" not in json.loads(sent.body)
        talk = at.conversation()
        sent = await talk.ask(body(max_tokens=4000))
        assert isinstance(sent, Sent)
        assert (sent.addresses[0], set(sent.addresses[1:])) == (core, edge)
        seen = await talk.answer(served=sent.addresses[1])
        assert isinstance(seen, dict)
        assert (seen["x-edge-degraded"], seen["x-edge-reason"]) == ("true", "degraded")

    play(tmp_path, scenario)


def test_the_data_plane_may_confine_a_request(tmp_path: Path) -> None:
    """Only endpoints of its list are named; where none of them is there the request is refused with 503."""

    async def scenario(at: Running) -> None:
        sent = await at.conversation(subset=[at.address("two")]).ask(body())
        assert isinstance(sent, Sent)
        assert set(sent.addresses) == {at.address("two")}
        for nobody in ([], ["10.0.0.1:1"]):
            refused = await at.conversation(subset=nobody).ask(body())
            assert isinstance(refused, Refused)
            assert (refused.status, refused.error["code"]) == (503, "no_endpoint")

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    ("given", "status", "code"),
    [
        pytest.param({"path": "/v1/embeddings"}, 404, "not_found", id="path"),
        pytest.param({"path": "/generate"}, 404, "not_found", id="short form"),
        pytest.param({"method": "PUT"}, 404, "not_found", id="method"),
        pytest.param({"body": b""}, 400, "invalid_json", id="no body"),
        pytest.param({"body": b"[]"}, 400, "invalid_json", id="no object"),
        pytest.param({"body": body(priority="soon")}, 400, "invalid_value", id="value"),
        pytest.param({"body": body(model="gpt")}, 404, "model_not_found", id="model"),
        pytest.param({"body": body(session="x" * (1 << 20))}, 413, "body_too_large", id="size"),
        pytest.param({"content_length": str(1 << 30)}, 413, "body_too_large", id="announced size"),
        pytest.param({"x_edge_sensitive": "maybe"}, 400, "invalid_value", id="neither sensitive nor not"),
        pytest.param({"x_edge_session": "x" * (17 << 10)}, 431, "headers_too_large", id="headers"),
        pytest.param({"body": body(deadline_ms=1)}, 503, "deadline", id="deadline"),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(
    tmp_path: Path, given: dict[str, Any], status: int, code: str
) -> None:
    """A refusal is a whole answer in OpenAI's shape, counted by its code."""

    async def scenario(at: Running) -> None:
        talk = at.conversation()
        refused = await talk.ask(**{"body": body(), **given})
        talk.exchange.end()
        assert isinstance(refused, Refused)
        assert (refused.status, refused.error["code"]) == (status, code)
        assert refused.headers["content-type"] == "application/json"
        assert not any(at.picker.fleet.flights.values())

    play(tmp_path, scenario)


def test_full_servers_are_429_with_a_time(tmp_path: Path) -> None:
    """The protocol's word for load is 429; Retry-After says when."""

    async def scenario(at: Running) -> None:
        refused = await at.conversation().ask(body())
        assert isinstance(refused, Refused)
        assert (refused.status, refused.error["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1

    full = {"busy": 4, "queued": 400}
    play(tmp_path, scenario, status={"one": full, "two": full, "gpu": full})


def test_a_mode_that_sends_on_too_early_is_refused(tmp_path: Path) -> None:
    """A data plane that streams without waiting for the decision gets none."""

    async def scenario(at: Running) -> None:
        refused = await at.conversation(mode=1).ask(body())
        assert isinstance(refused, Refused)
        assert (refused.status, refused.error["code"]) == (503, "body_mode")

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    ("status", "seen"),
    [
        pytest.param(500, 502, id="its own fault"),
        pytest.param(503, 502, id="down"),
        pytest.param(504, 504, id="late"),
    ],
)
def test_servers_that_all_failed_are_one_error(tmp_path: Path, status: int, seen: int) -> None:
    """What a server or Envoy says about it does not reach the client."""

    async def scenario(at: Running) -> None:
        talk = at.conversation()
        sent = await talk.ask(body())
        assert isinstance(sent, Sent)
        refused = await talk.answer(status, served=sent.addresses[-1])
        talk.exchange.end()
        assert isinstance(refused, Refused)
        assert refused.status == seen
        assert at.site.lines[-1]["outcome"] == "refused"

    play(tmp_path, scenario)


def test_what_the_client_did_wrong_passes(tmp_path: Path) -> None:
    """A server's own 400 is the client's, with who said so."""

    async def scenario(at: Running) -> None:
        talk = at.conversation()
        sent = await talk.ask(body())
        assert isinstance(sent, Sent)
        seen = await talk.answer(400, served=sent.addresses[0])
        talk.exchange.end()
        assert isinstance(seen, dict)
        assert seen["x-edge-pool"] == "edge"
        assert at.site.lines[-1]["outcome"] == "rejected"

    play(tmp_path, scenario)


def test_a_client_that_leaves_counts_as_that(tmp_path: Path) -> None:
    """A conversation that ends before an answer leaves nothing behind."""

    async def scenario(at: Running) -> None:
        talk = at.conversation()
        await talk.ask(body())
        talk.exchange.end()
        assert at.site.lines[-1]["outcome"] == "left"
        assert not any(at.picker.fleet.flights.values())

    play(tmp_path, scenario)


def test_a_stream_counts_for_a_while_after_its_head(tmp_path: Path) -> None:
    """Its end is not seen, so it counts until the endpoint's next state has it; a whole answer ends with its head."""

    async def scenario(at: Running) -> None:
        for stream in (True, False):
            talk = at.conversation()
            sent = await talk.ask(body(stream=stream))
            assert isinstance(sent, Sent)
            await talk.answer(served=sent.addresses[0])
            assert talk.exchange.over
            talk.exchange.end()
            assert at.picker.fleet.flights["one"] == int(stream)
            await until(lambda: not any(at.picker.fleet.flights.values()))
        assert at.picker.fleet.members["one"].service_ms is not None

    play(tmp_path, scenario, edge={"one": says("x")}, poll_s=0.5)


def test_a_sensitive_request_stays_at_the_edge(tmp_path: Path) -> None:
    """It is one by any word for yes, and by one of several headers."""

    async def scenario(at: Running) -> None:
        sent = await at.conversation().ask(body(max_tokens=4000), x_edge_sensitive="On")
        assert isinstance(sent, Sent)
        assert at.address("gpu") not in sent.addresses
        twice = [{"key": "x-edge-sensitive", "raw_value": word} for word in (b"true", b"false")]
        assert messages.headers(protocol.HeaderMap(headers=twice)) == {b"x-edge-sensitive": b"true,false"}

    play(tmp_path, scenario)


def test_keys_hold_here_too(tmp_path: Path) -> None:
    """Without a key 401; a batch key's requests are batch."""
    keys = tmp_path / "keys.yaml"
    key = add_key(keys, "nightly", priority=Priority.BATCH, rate=None)

    async def scenario(at: Running) -> None:
        refused = await at.conversation().ask(body())
        assert isinstance(refused, Refused)
        assert refused.status == 401
        talk = at.conversation()
        sent = await talk.ask(body(), authorization=f"Bearer {key}")
        assert isinstance(sent, Sent)
        seen = await talk.answer(served=sent.addresses[0])
        assert isinstance(seen, dict)
        assert seen["x-edge-reason"] == "batch"

    play(tmp_path, scenario, keys=keys)


def test_models_are_listed_without_a_server(tmp_path: Path) -> None:
    """The list is the picker's own answer, and no completion in the journal."""

    async def scenario(at: Running) -> None:
        talk = at.conversation()
        listed = await talk.ask(b"", path="/v1/models", method="GET")
        talk.exchange.end()
        assert isinstance(listed, Refused)
        assert listed.status == 200
        assert at.site.lines == []

    play(tmp_path, scenario)


def test_a_deadline_is_passed_to_envoy(tmp_path: Path) -> None:
    """Envoy ends what takes longer than the client waits."""

    async def scenario(at: Running) -> None:
        sent = await at.conversation().ask(body(deadline_ms=20_000, max_tokens=8))
        assert isinstance(sent, Sent)
        assert 10_000 < int(sent.headers["x-envoy-upstream-rq-timeout-ms"]) <= 20_000

    play(tmp_path, scenario)


def test_readiness_follows_the_endpoints(tmp_path: Path) -> None:
    """Nothing can be answered when no endpoint is ready."""

    async def scenario(at: Running) -> None:
        assert at.picker.problems() == []
        for server in at.site.servers.values():
            server.status = {"state": State.DRAINING}
        await until(lambda: at.picker.problems() == ["no endpoint is ready with a variant of the release"])

    play(tmp_path, scenario)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=12,
)
_FIELDS = st.dictionaries(
    st.sampled_from(["model", "messages", "max_tokens", "stream", "sensitive", "session", "priority", "deadline_ms"]),
    _JSON,
)
_BODIES = st.binary(max_size=200) | _FIELDS.map(lambda f: json.dumps({**chat(), **f}).encode())


def test_whatever_comes_is_decided_or_refused(tmp_path: Path) -> None:
    """Any body, however it is cut, gets one decision that both ways of telling agree on, or one refusal below 500 or for load."""

    async def scenario(at: Running) -> None:
        loop = asyncio.get_running_loop()

        @settings(max_examples=150)
        @given(data=_BODIES, mode=st.sampled_from([BUFFERED, STREAMED]), pieces=st.integers(1, 4))
        def check(data: bytes, mode: int, pieces: int) -> None:
            async def talk() -> None:
                held = at.conversation(mode=mode)
                found = await held.ask(data, pieces=pieces if mode == STREAMED and data else 1)
                held.exchange.end()
                if isinstance(found, Refused):
                    assert found.error["code"]
                    assert found.status in {400, 404, 429, 503}
                else:
                    json.loads(found.body)

            asyncio.run_coroutine_threadsafe(talk(), loop).result(20)

        await asyncio.to_thread(check)
        assert not any(at.picker.fleet.flights.values())

    play(tmp_path, scenario)


def test_it_is_served_over_grpc(tmp_path: Path) -> None:
    """A conversation over a real connection, health by the protocol's names, and a port of its own."""

    async def scenario(at: Running) -> None:
        port = free_port()
        door = Door(at.picker, "127.0.0.1", port)
        await door.open()
        with pytest.raises(ToolError, match="cannot be listened on"):
            check("127.0.0.1", port, "--port")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for service in ("", "liveness", "readiness", protocol.SERVICE):
                await health(channel, service, HealthCheckResponse.SERVING)
            call = channel.stream_stream(
                f"/{protocol.SERVICE}/{protocol.METHOD}",
                protocol.ProcessingRequest.SerializeToString,
                protocol.ProcessingResponse.FromString,
            )()
            await call.write(head({":method": "POST", ":path": "/v1/embeddings"}))
            assert (await call.read()).immediate_response.status.code == 404
            await call.done_writing()
            at.picker.draining = True
            await health(channel, "readiness", HealthCheckResponse.NOT_SERVING)
            await health(channel, "liveness", HealthCheckResponse.SERVING)
        await door.close()

    async def health(channel: grpc.aio.Channel, service: str, wanted: int) -> None:
        stub, found = HealthStub(channel), None
        async with asyncio.timeout(60):
            while found != wanted:
                with suppress(grpc.aio.AioRpcError):  # not told yet
                    found = (await stub.Check(HealthCheckRequest(service=service))).status

    play(tmp_path, scenario)
