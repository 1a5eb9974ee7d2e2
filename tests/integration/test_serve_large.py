"""The large server as a user starts it: two real ranks over gloo behind a node's door, and what can go wrong with them.

Where vLLM's command is on PATH (docs/large.md says how to have it on a CPU), the same is asked of it.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.model.join import join
from pipeline.peers.status import Pool, State
from tests.support import built, nodes, served
from tests.support.nodes import NodeProcess
from tests.support.served import Made, MadeLarge, Shop

pytestmark = [pytest.mark.skipif(bool(built.missing()), reason=built.missing()), pytest.mark.timeout(900)]
NEEDS_VLLM = pytest.mark.skipif(not shutil.which("vllm"), reason="needs vllm on PATH: docs/large.md, Try vLLM on a CPU")
WORKER = re.compile(r"VLLM::Worker|(?!.*torch\.distributed\.run).*--slots=")  # a rank's command line
PROMPT = {"messages": [{"role": "user", "content": "where is the black tea?"}], "temperature": 0}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return served.make(tmp_path_factory.mktemp("small"), 0)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> MadeLarge:
    return served.make_large(tmp_path_factory.mktemp("large"), 3, head_dim=32)  # the least that vLLM has on a CPU


@pytest.fixture(scope="module")
def shop(small: Made, large: MadeLarge, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    made = served.shop(tmp_path_factory.mktemp("shop"))
    made.publish(1, small, large=large)
    return made


@pytest.fixture(scope="module", params=["transformers", pytest.param("vllm", marks=NEEDS_VLLM)])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(engine: str, shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    made = NodeProcess(shop, tmp_path_factory.mktemp("server"), command="serve-large")
    made.start("--engine", engine).until_serving(1)
    yield made
    made.stop()


@pytest.fixture
def client(server: NodeProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)


def test_it_is_proven_and_says_what_it_serves(server: NodeProcess) -> None:
    """Ready only after the golden answers; in the NVLink pool, by the digest of the shards' layout."""
    status = server.status()
    assert (status.pool, status.state, status.slots, status.context) == (Pool.NVLINK, State.READY, 2, 256)
    assert status.served is not None
    assert status.served.variant == served.LARGE


def test_it_answers_as_the_ranks_of_the_check_did(server: NodeProcess, large: MadeLarge) -> None:
    """Continuous batching gives the tokens that evidence has, asked alone or all at once."""
    golden = [json.loads(line) for line in (large.folder / "golden.jsonl").read_text().splitlines()]

    def asked(prompt: dict[str, Any]) -> list[int]:
        ids = post(server, "/tokenize", {"messages": [{"role": "user", "content": prompt["prompt"]}]})["tokens"]
        body = {"prompt": ids, "max_tokens": prompt["max_tokens"], "temperature": 0, "return_token_ids": True}
        found: list[int] = post(server, "/v1/completions", body)["choices"][0]["token_ids"]
        return found

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(asked, golden))
    assert together == [large.answers[prompt["id"]] for prompt in golden]


def test_the_stock_client_streams_and_counts(client: openai.OpenAI) -> None:
    """A streamed answer is the whole one in pieces, with usage where it is asked for."""
    whole = client.chat.completions.create(model=served.LARGE, max_tokens=12, **PROMPT)
    stream = client.chat.completions.create(
        model=served.LARGE, max_tokens=12, stream=True, stream_options={"include_usage": True}, **PROMPT
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    assert whole.choices[0].finish_reason == "length"


def test_an_answer_goes_on_from_the_text_it_has(client: openai.OpenAI) -> None:
    """What another server began is continued as the last message, as gateways ask it to be."""
    whole = client.chat.completions.create(model=served.LARGE, max_tokens=12, **PROMPT).choices[0].message.content or ""
    begun = {"role": "assistant", "content": whole[: len(whole) // 2]}
    rest = client.chat.completions.create(
        model=served.LARGE, max_tokens=12, messages=[*PROMPT["messages"], begun], temperature=0,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )  # fmt: skip
    again = client.chat.completions.create(
        model=served.LARGE, max_tokens=12, messages=[*PROMPT["messages"], begun], temperature=0
    )
    assert rest.usage is not None
    assert again.usage is not None
    assert rest.usage.prompt_tokens < again.usage.prompt_tokens


def test_a_stop_text_ends_an_answer_before_it(client: openai.OpenAI) -> None:
    """Nothing of the stop text is told, whole or streamed."""
    whole = client.completions.create(model=served.LARGE, prompt="where is", max_tokens=16, temperature=0)
    text = whole.choices[0].text
    stop = text[3:5]
    cut = client.completions.create(model=served.LARGE, prompt="where is", max_tokens=16, temperature=0, stop=stop)
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({**PROMPT, "n": 2}, "n"),
        ({**PROMPT, "tools": [{"type": "function"}]}, "tools"),
        ({**PROMPT, "logprobs": True}, "logprobs"),
        ({**PROMPT, "model": "another"}, "model"),
        ({**PROMPT, "max_tokens": 0}, "max_tokens"),
        ({**PROMPT, "max_tokens": 100000}, "max_tokens"),
        ({**PROMPT, "temperature": "hot"}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "tea " * 400}]}, "messages"),
        ({"messages": "tea"}, "messages"),
    ],
)
def test_what_it_cannot_do_is_refused(server: NodeProcess, engine: str, body: dict[str, Any], param: str) -> None:
    """A field that would change the answer is an error in OpenAI's shape, never ignored."""
    if engine == "vllm":
        pytest.skip("vLLM can do more, and refuses in its own words")
    status, data = server.ask("POST", "/v1/chat/completions", body)
    error = json.loads(data)["error"]
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_frees_its_place(server: NodeProcess, engine: str, stream: bool) -> None:
    """The engine stops generating for whoever hung up, and its figures have vLLM's names."""
    if engine == "vllm" and not stream:
        pytest.skip("so small a model's whole answer is over before vLLM tells of it")

    def running() -> float:
        return figure(server, "vllm:num_requests_running")

    def aborted() -> float:
        return figure(server, "vllm:request_success_total", finished_reason="abort")

    before = aborted()
    connection = server.connect()
    body = json.dumps({**PROMPT, "stream": stream, "max_tokens": 230})
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    until(lambda: running() == 1)
    sock = connection.sock
    assert isinstance(sock, socket.socket)
    sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    until(lambda: running() == 0)
    if engine == "transformers":  # vLLM 0.32 does not count who left
        until(lambda: aborted() == before + 1)
    assert figure(server, "vllm:time_to_first_token_seconds_count") > 1


def test_nobody_goes_around_the_door(server: NodeProcess) -> None:
    """The engine wants the door's key."""
    connection = http.client.HTTPConnection("127.0.0.1", engine_port(server))
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 401
    connection.close()


def test_a_rank_that_dies_ends_all_and_they_come_back(engine: str, shop: Shop, tmp_path: Path) -> None:
    """No rank goes on without the others; the door restarts them, and leaves none behind when it ends."""
    made = NodeProcess(shop, tmp_path / "server", command="serve-large")
    try:
        made.start("--engine", engine).until_serving(1)
        first = ranks(made)
        assert len(first) == 2
        nodes.kill_process(first[1])
        for pid in first:
            nodes.gone(pid)
        made.until_serving(1)
        second = ranks(made)
        assert made.stop() == 0
        for pid in second:
            nodes.gone(pid)
    finally:
        made.stop()


def test_answers_that_are_not_the_evidences_are_never_served(small: Made, large: MadeLarge, tmp_path: Path) -> None:
    """Shards that answer otherwise than the manifest says get no request, and the reason names the prompt."""
    shop = served.shop(tmp_path / "shop")
    prompt, *_ = large.answers
    shop.publish(1, small, large=MadeLarge(large.folder, {**large.answers, prompt: [5, 6, 7]}))
    made = NodeProcess(shop, tmp_path / "server", command="serve-large")
    try:
        made.start("--engine", "transformers")
        status = made.until(lambda s: s.state is State.FAILED)
        assert prompt in (status.reason or "")
        assert made.ask("POST", "/v1/chat/completions", PROMPT)[0] == 503
    finally:
        made.stop()


def test_joined_shards_are_the_model_they_were_split_from(large: MadeLarge, tmp_path: Path) -> None:
    """What vLLM is given is the teacher's weights to the bit."""
    import torch
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(join(large.folder, tmp_path / "whole"))
    model = AutoModelForCausalLM.from_pretrained(large.folder.parent / "model")
    for (name, ours), theirs in zip(whole.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def figure(server: NodeProcess, name: str, **labels: str) -> float:
    """What a server says of its variant; vLLM has one more label, its engine's number."""
    wanted = {"model_name": served.LARGE, **labels}.items()
    families = text_string_to_metric_families(server.ask("GET", "/metrics")[1].decode())
    return sum(s.value for family in families for s in family.samples if s.name == name and wanted <= s.labels.items())


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + nodes.PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def post(server: NodeProcess, path: str, body: dict[str, Any]) -> Any:
    status, data = server.ask("POST", path, body)
    assert status == 200, data
    return json.loads(data)


def ranks(server: NodeProcess) -> list[int]:
    """The process ids of the engine's ranks, by rank."""
    assert server.process is not None
    found = {pid: " ".join(nodes.arguments(pid)) for pid in nodes.descendants(server.process.pid)}
    return sorted(pid for pid, line in found.items() if WORKER.match(line))


def engine_port(server: NodeProcess) -> int:
    assert server.process is not None
    lines = (" ".join(nodes.arguments(pid)) for pid in nodes.descendants(server.process.pid))
    return int(next(found[1] for line in lines if (found := re.search(r"--port[ =](\d+)", line))))
