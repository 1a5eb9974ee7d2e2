"""The real Envoy before real nodes and a large server's stand-in, with the endpoint picker deciding."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from pipeline.catalog.names import Target, Tier, Variant
from pipeline.manifest.encoding import sha256
from pipeline.peers.role import Role
from pipeline.peers.status import Pool, Served
from pipeline.toolchain import runtime
from tests.support import built, envoys, pki, served
from tests.support.envoys import Envoy, Picker
from tests.support.llama_server import LlamaServer
from tests.support.nodes import NodeProcess
from tests.support.releases import LINE
from tests.support.served import Shop

pytestmark = [
    pytest.mark.skipif(bool(built.missing()), reason=built.missing()),
    pytest.mark.skipif(bool(envoys.missing()), reason=envoys.missing()),
    pytest.mark.timeout(900),
]

LARGE, SHARDS = "large-x86_64", b"{}"
TEA = "where is the black tea?"
LONG = "tea " * 120


def _served(variant: str, digest: str) -> Served:
    return Served(variant=variant, model_sha256=digest, release_line=LINE, release_version=1, manifest_sha256="0" * 64)


@dataclass
class Site:
    """Two nodes, a large server, one that claims a file nobody released, a picker and an Envoy."""

    root: Path
    shop: Shop
    nodes: dict[str, NodeProcess] = field(default_factory=dict)
    others: dict[str, LlamaServer] = field(default_factory=dict)
    envoys: list[Envoy] = field(default_factory=list)

    @cached_property
    def picker(self) -> Picker:
        return Picker(self.root)

    def start(self, model: Path) -> None:
        for name in ("pi-1", "pi-2"):
            self.nodes[name] = NodeProcess(self.shop, self.root / name).start("--name", name)
        program = runtime.find(runtime.native()).program(runtime.SERVER)
        self.others["gpu"] = LlamaServer(program, model, Pool.NVLINK, _served(LARGE, sha256(SHARDS)))
        self.others["liar"] = LlamaServer(program, model, Pool.EDGE, _served(served.VARIANT, "f" * 64))
        for node in self.nodes.values():
            node.until_serving(1)
        endpoints = [{"name": n, "url": f"http://localhost:{s.port}", "pool": "edge"} for n, s in self.nodes.items()]
        endpoints += [
            {"name": n, "url": s.url, "pool": str(s.pool), "status": s.status_url} for n, s in self.others.items()
        ]
        # Looks are so rare that what a test does to a node is met by Envoy first; nothing depends on how busy this is.
        policy = {"near_ms": 1000.0, "cpu": 1.0, "queue_wait_ms": 60_000.0, "long_generation_tokens": 100}
        config = {"endpoints": endpoints, "policy": policy, "poll_s": 5.0, "effort": {"circuit_pause_s": 0.5}}
        (self.root / "gateway.yaml").write_text(yaml.safe_dump(config))
        self.picker.start(
            "--config", self.root / "gateway.yaml", "--registry", self.shop.registry, "--trust", self.shop.trust,
            "--state", self.root / "state.json",
        )  # fmt: skip
        self.envoy()

    def envoy(self, *, only: list[str] | None = None, change: envoys.Change = lambda _: None) -> Envoy:
        """Start an Envoy that knows all servers, or only some of them."""
        ports = [s.port for n, s in (*self.nodes.items(), *self.others.items()) if only is None or n in only]
        found = Envoy(self.root, f"envoy-{len(self.envoys)}.log").start(ports, self.picker.port, change)
        self.envoys.append(found)
        return found

    def stop(self) -> None:
        for process in (*self.envoys, self.picker):
            process.kill()
        for node in self.nodes.values():
            node.stop()
        for server in self.others.values():
            server.stop()

    @property
    def url(self) -> str:
        return self.envoys[0].url

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def ask(self, prompt: str = TEA, **fields: Any) -> Any:
        usual = {"model": "auto", "messages": [{"role": "user", "content": prompt}], "max_tokens": 8, "temperature": 0}
        return self.client.chat.completions.with_raw_response.create(**{**usual, **fields})


def _post(url: str, data: bytes, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url, data, headers or {})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, dict(answer.headers.items()), answer.read()
    except urllib.error.HTTPError as e:
        return e.code, dict(e.headers.items()), e.read()


def _body(**fields: Any) -> bytes:
    usual = {"model": "auto", "messages": [{"role": "user", "content": TEA}], "max_tokens": 8, "temperature": 0}
    return json.dumps({**usual, **fields}).encode()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    made = served.make(root / "model", 0)
    shop = served.shop(root / "shop")
    weights = {f"{Variant(Tier.TINY_EDGE, t).name}/model.gguf": made.gguf.read_bytes() for t in Target}
    shop.publish(1, made, more={f"{LARGE}/shards.json": SHARDS, **weights})
    found = Site(root, shop)
    try:
        found.start(made.gguf)
        yield found
    finally:
        found.stop()


def test_the_manifest_is_valid() -> None:
    """Envoy takes the file as it lies in the repository."""
    found = subprocess.run(["envoy", "--mode", "validate", "-c", envoys.MANIFEST], capture_output=True, check=False)
    assert found.returncode == 0, found.stderr.decode()


def test_the_stock_client_is_answered(site: Site) -> None:
    """Whole and streamed chats, text completions and models; who answered and why is in the headers."""
    raw = site.ask()
    whole = raw.parse().choices[0].message.content
    told = {k: raw.headers[f"x-edge-{k}"] for k in ("pool", "endpoint", "variant", "digest", "reason")}
    assert whole
    assert told["pool"] == "edge"
    assert told["endpoint"] in site.nodes
    assert told["variant"] == served.VARIANT
    assert told["digest"] == site.nodes["pi-1"].status().served.model_sha256  # type: ignore[union-attr]
    assert told["reason"] == "affinity"
    assert raw.parse().model == told["variant"]
    assert raw.headers["x-request-id"]
    streamed = site.ask(stream=True, stream_options={"include_usage": True})
    chunks = list(streamed.parse())
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[-1].usage.completion_tokens == 8
    assert streamed.headers["x-edge-endpoint"] == told["endpoint"]
    completion = site.client.completions.create(model="tiny", prompt=TEA, max_tokens=4)
    assert completion.choices[0].text
    assert {"auto", served.VARIANT, LARGE} <= {m.id for m in site.client.models.list()}


@pytest.mark.parametrize(
    ("fields", "pool", "reason"),
    [
        pytest.param({"prompt": LONG}, "nvlink", "long_prompt", id="long prompt"),
        pytest.param({"max_tokens": 100}, "nvlink", "long_generation", id="long answer"),
        pytest.param({"prompt": LONG, "extra_body": {"sensitive": True}}, "edge", "sensitive", id="sensitive and long"),
        pytest.param({"extra_headers": {"x-edge-sensitive": "true"}}, "edge", "sensitive", id="sensitive by header"),
        pytest.param({"model": served.VARIANT}, "edge", "pinned", id="pinned"),
        pytest.param({"extra_body": {"priority": "batch"}}, "nvlink", "batch", id="batch"),
    ],
)
def test_requests_go_where_the_gateway_would_send_them(
    site: Site, fields: dict[str, Any], pool: str, reason: str
) -> None:
    """The rules of routing hold through Envoy, and are counted."""
    name = f'gateway_route_total{{pool="{pool}",reason="{reason}"}}'
    before = site.picker.metrics().get(name, 0)
    found = site.ask(**fields)
    assert (found.headers["x-edge-pool"], found.headers["x-edge-reason"]) == (pool, reason)
    assert site.picker.metrics()[name] == before + 1


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        pytest.param("chat/completions", b"{", 400, "invalid_json", id="no json"),
        pytest.param("chat/completions", b"", 400, "invalid_json", id="no body"),
        pytest.param("chat/completions", _body(max_tokens=-1), 400, "invalid_value", id="bad field"),
        pytest.param("chat/completions", _body(model="gpt"), 404, "model_not_found", id="unknown model"),
        pytest.param("chat/completions", _body(session="x" * (1 << 20)), 413, "body_too_large", id="large body"),
        pytest.param(
            "chat/completions", _body(session="x" * (3 << 20)), 413, "body_too_large", id="larger than Envoy keeps"
        ),
        pytest.param("embeddings", b"{}", 404, "not_found", id="another path"),
    ],
)
def test_a_bad_request_is_refused_in_openais_words(site: Site, path: str, body: bytes, status: int, code: str) -> None:
    """Whoever refuses, the picker or Envoy, the client reads one kind of error."""
    found, headers, data = _post(f"{site.url}/v1/{path}", body)
    assert (found, json.loads(data)["error"]["code"]) == (status, code)
    assert headers["content-type"] == "application/json"


def test_a_client_cannot_choose_its_endpoint(site: Site) -> None:
    """The protocol's header from a client moves nothing."""
    gpu = f"127.0.0.1:{site.others['gpu'].port}"
    _, headers, _ = _post(f"{site.url}/v1/chat/completions", _body(), {"x-gateway-destination-endpoint": gpu})
    assert headers["x-edge-pool"] == "edge"


def test_an_endpoint_with_another_file_is_never_chosen(site: Site) -> None:
    """A server whose digest no release names gets nothing, whatever session asks."""
    seen = {site.ask(extra_body={"session": str(i)}).headers["x-edge-endpoint"] for i in range(24)}
    assert seen == set(site.nodes)
    assert site.picker.metrics()['gateway_endpoint_usable{endpoint="liar",pool="edge"}'] == 0


def test_envoy_sends_nothing_to_servers_that_were_not_chosen(site: Site) -> None:
    """Where Envoy knows none of the picker's endpoints the request ends, though it knows a server."""
    only_gpu = site.envoy(only=["gpu"])
    status, headers, data = _post(f"{only_gpu.url}/v1/chat/completions", _body(sensitive=True))
    assert (status, json.loads(data)["error"]["code"]) == (502, "upstream_failed")
    assert "x-edge-endpoint" not in headers


def test_streamed_bodies_are_decided_too(site: Site) -> None:
    """A data plane that streams bodies both ways, as Kubernetes gateways do, gets the same decisions and answers."""

    def duplex(config: dict[str, Any]) -> None:
        envoys.processor(config)["processing_mode"].update(
            request_body_mode="FULL_DUPLEX_STREAMED", request_trailer_mode="SEND",
            response_body_mode="FULL_DUPLEX_STREAMED", response_trailer_mode="SEND",
        )  # fmt: skip

    client = openai.OpenAI(base_url=f"{site.envoy(change=duplex).url}/v1", api_key="none", max_retries=0)
    with client:
        asked: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": TEA}], "max_tokens": 8}
        raw = client.chat.completions.with_raw_response.create(**asked, temperature=0)
        assert raw.headers["x-edge-reason"] == "affinity"
        chunks = client.chat.completions.create(**asked, temperature=0, stream=True)
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        assert text == raw.parse().choices[0].message.content
        asked["messages"][0]["content"] = "tea " * 40_000
        with pytest.raises(openai.BadRequestError) as e:
            client.chat.completions.create(**asked)
        assert e.value.code == "too_long"


@contextmanager
def _held(site: Site) -> Iterator[Iterator[Any]]:
    """Yield the rest of an answer whose server stands still until then."""
    gpu = site.others["gpu"]
    stream = site.ask(model="large", stream=True, max_tokens=99, extra_body={"ignore_eos": True}).parse()
    events = iter(stream)
    next(events)
    gpu.freeze()
    try:
        yield events
    finally:
        gpu.thaw()
        stream.close()


def test_a_stream_counts_until_its_server_tells_of_it(site: Site) -> None:
    """A request is known from its decision on, beyond its answer's head, until the server's next state has it."""
    _until(lambda: site.picker.metrics()["gateway_in_flight"] == 0)
    with _held(site):
        assert site.picker.metrics()["gateway_in_flight"] == 1
        _until(lambda: site.picker.metrics()["gateway_in_flight"] == 0)


def test_killed_node_is_replaced_by_the_fallback(site: Site) -> None:
    """Requests to a node that was killed, before anyone knows, are answered by the other; not one fails."""
    home = site.ask().headers["x-edge-endpoint"]
    (other,) = set(site.nodes) - {home}
    node = site.nodes[home]
    asked, failed = threading.Event(), list[str]()

    def client(number: int) -> list[tuple[str, str]]:
        found = []
        for i in range(20):
            status, headers, data = _post(f"{site.url}/v1/chat/completions", _body())
            if status != 200:
                failed.append(f"{status} {data!r}")
                continue
            found.append((headers["x-edge-endpoint"], headers["x-edge-reason"]))
            if number == 0 and i == 3:
                asked.set()
        return found

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(client, i) for i in range(4)]
        asked.wait(60)
        node.kill()
        answers = [a for r in running for a in r.result()]
    try:
        assert failed == []
        assert (other, "retry") in answers
        name = f'gateway_upstream_failures_total{{endpoint="{home}",fault="passed_over"}}'
        assert site.picker.metrics()[name] >= 1
    finally:
        node.start("--name", home)
        node.until_serving(1)
        _until(lambda: site.picker.metrics()[f'gateway_endpoint_usable{{endpoint="{home}",pool="edge"}}'] == 1)


def test_without_the_picker_nothing_is_answered(site: Site) -> None:
    """Envoy refuses while the picker is gone, in OpenAI's words, and answers again when it is back; open answers go on."""
    with _held(site) as events:
        _until(lambda: site.picker.metrics()["gateway_in_flight"] == 0)  # it let go of the answer
        site.picker.kill()
        site.others["gpu"].thaw()
        assert list(events)[-1].choices[0].finish_reason == "length"
    for _ in range(3):
        status, headers, data = _post(f"{site.url}/v1/chat/completions", _body())
        assert (status, json.loads(data)["error"]["code"]) == (503, "no_decision")
        assert headers["retry-after"] == "1"
    site.picker.start()
    _until(lambda: _post(f"{site.url}/v1/chat/completions", _body())[0] == 200)


def test_a_picker_that_says_nothing_is_not_waited_for(site: Site) -> None:
    """A frozen picker costs the request its second, not more."""
    assert site.picker.process is not None
    site.picker.process.send_signal(signal.SIGSTOP)
    try:
        status, _, data = _post(f"{site.url}/v1/chat/completions", _body())
        assert (status, json.loads(data)["error"]["code"]) == (503, "no_decision")
    finally:
        site.picker.process.send_signal(signal.SIGCONT)
    _until(lambda: _post(f"{site.url}/v1/chat/completions", _body())[0] == 200)


def test_an_open_answer_outlives_the_pickers_end(site: Site) -> None:
    """At SIGTERM the picker ends with status 0; an answer under way comes to its end without it."""
    process = site.picker.process
    assert process is not None
    with _held(site) as events:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert _post(f"{site.url}/v1/chat/completions", _body())[0] == 503
        site.others["gpu"].thaw()
        assert list(events)[-1].choices[0].finish_reason == "length"
    site.picker.start()
    _until(lambda: _post(f"{site.url}/v1/chat/completions", _body())[0] == 200)


def test_servers_are_called_over_mutual_tls(tmp_path: Path) -> None:
    """With what docs/envoy.md adds to the manifest Envoy shows its certificate, and takes only servers with a role."""
    shop = served.shop(tmp_path / "shop")
    shop.publish(1, served.make(tmp_path / "one", 0))
    authority = pki.authority()
    own, theirs = (pki.folder(tmp_path / role, authority, role) for role in (Role.GATEWAY, Role.NODE))
    stranger = pki.folder(tmp_path / "stranger", authority, Role.CLIENT)
    node, picker, envoy = NodeProcess(shop, tmp_path / "node"), Picker(tmp_path), Envoy(tmp_path)
    text = (envoys.ROOT / "docs" / "envoy.md").read_text().partition("```yaml\n")[2].partition("```")[0]

    def secured(config: dict[str, Any], folder: Path = own) -> None:
        envoys.cluster(config, "servers").update(yaml.safe_load(text.replace("pki/gateway-1", str(folder))))

    try:
        node.start("--tls", str(theirs), "--host", "127.0.0.1")
        picker.start(
            "--edge", f"https://localhost:{node.port}", "--tls", own, "--registry", shop.registry, "--trust", shop.trust,
            "--state", tmp_path / "state.json",
        )  # fmt: skip
        url = f"{envoy.start([node.port], picker.port, secured).url}/v1/chat/completions"
        status, headers, _ = _post(url, _body())
        assert (status, headers["x-edge-endpoint"]) == (200, f"localhost:{node.port}")
        envoy.kill()
        envoy.start([node.port], picker.port, lambda config: secured(config, stranger))
        assert _post(url, _body())[0] == 502
    finally:
        envoy.kill()
        picker.kill()
        node.stop()


def _until(holds: Any) -> None:
    end = threading.Event()
    for _ in range(600):
        if holds():
            return
        end.wait(0.1)
    raise AssertionError("it never held")
