"""The gateway's own process before real llama-servers, asked by the stock `openai` client and killed at."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from pipeline.errors import PipelineError
from pipeline.manifest.encoding import sha256
from pipeline.serving.decision import Counted
from pipeline.serving.gateway.tokens import counter
from pipeline.serving.status import Pool, Served
from pipeline.toolchain import host, runtime
from tests.support.llama_server import LlamaServer, await_http, demo_gguf, free_port, golden
from tests.support.releases import LINE
from tests.support.scenes import Scene

TINY, LARGE = "tiny-edge-x86_64", "large-x86_64"
SHARDS = b"{}"
ROOT = Path(__file__).parents[2]
ASKED = golden("diagnosis")
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


@dataclass
class Site:
    """A released model, its servers and a gateway before them."""

    root: Path
    model: Path
    program: Path
    servers: dict[str, LlamaServer] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    port: int = field(default_factory=free_port)

    def server(self, name: str, pool: Pool = Pool.EDGE) -> LlamaServer:
        variant, digest = (TINY, sha256(self.model.read_bytes())) if pool is Pool.EDGE else (LARGE, sha256(SHARDS))
        served = Served(
            variant=variant, model_sha256=digest, release_line=LINE, release_version=1, manifest_sha256="0" * 64
        )
        self.servers[name] = LlamaServer(self.program, self.model, pool, served)
        return self.servers[name]

    def start(self, *flags: str, **settings: Any) -> None:
        """Start the gateway before the servers that are there."""
        endpoints = [
            {"name": n, "url": s.url, "pool": str(s.pool), "status": s.status_url} for n, s in self.servers.items()
        ]
        config = self.root / "gateway.yaml"
        config.write_text(yaml.safe_dump({"endpoints": endpoints, "poll_s": 0.2, **settings}))
        argv = [
            sys.executable, "-c", "import sys; from pipeline.cli import main; sys.exit(main())", "gateway",
            "--config", str(config), "--registry", str(self.root / "registry"), "--trust", str(self.root / "trust.yaml"),
            "--state", str(self.root / "state.json"), "--port", str(self.port), *flags,
        ]  # fmt: skip
        with (self.root / "journal").open("wb") as out:
            self.process = subprocess.Popen(
                argv, cwd=self.root, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=out
            )
        await_http(f"{self.url}/readyz", self.process)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    @property
    def journal(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "journal").read_text().splitlines()]

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            rows = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
        return float(rows[name])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        host.find()
    except PipelineError as e:
        pytest.skip(f"{e.message}: {e.hint}")
    return demo_gguf(tmp_path_factory.mktemp("model"))


@pytest.fixture
def site(tmp_path: Path, model: Path) -> Iterator[Site]:
    try:
        program = runtime.find(runtime.native()).program(runtime.SERVER)
    except PipelineError as e:
        pytest.skip(f"{e.message}: {e.hint}")
    scene = Scene(tmp_path)
    weights = model.read_bytes()
    scene.publish(
        1, files={f"{TINY}/model.gguf": weights, "tiny-edge-arm64/model.gguf": weights, f"{LARGE}/shards.json": SHARDS},
        valid_days=36500,
    )  # fmt: skip
    trust = {"line": LINE, "public_keys": [scene.publisher.pair.public_pem.decode()]}
    (tmp_path / "trust.yaml").write_text(yaml.safe_dump(trust))
    made = Site(tmp_path, model, program)
    yield made
    made.client.close()
    made.stop()
    for server in made.servers.values():
        server.stop()


def _ask(site: Site, **fields: Any) -> Any:
    usual = {"model": "auto", "messages": [{"role": "user", "content": ASKED["prompt"]}], **GREEDY}
    return site.client.chat.completions.with_raw_response.create(**{**usual, **fields})


def test_the_stock_client_is_answered(site: Site) -> None:
    """Whole and streamed chats, text completions, models, usage and errors, all as the client's own types."""
    site.server("pi")
    site.server("gpu", Pool.NVLINK)
    site.start(policy={"long_generation_tokens": 100})
    raw = _ask(site)
    answer = raw.parse().choices[0].message.content
    assert answer == ASKED["expected"]
    told = [raw.headers[f"x-edge-{name}"] for name in ("pool", "endpoint", "variant", "digest", "reason")]
    assert told == ["edge", "pi", TINY, sha256(site.model.read_bytes()), "tiny_edge"]

    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(_ask(site, **options).parse())
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == raw.parse().usage.completion_tokens

    text = site.client.completions.create(model="large", prompt="diagnose", max_tokens=4)
    assert text.usage is not None
    assert {m.id for m in site.client.models.list()} >= {"auto", "large", TINY}
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        _ask(site, model="gpt-4")
    with pytest.raises(openai.BadRequestError):
        _ask(site, temperature=7)
    assert _ask(site, max_tokens=100).headers["x-edge-reason"] == "long_generation"
    assert site.metric('gateway_route_total{pool="edge",reason="tiny_edge"}') == 2
    assert site.metric("gateway_tokenizer") == 1
    assert all(line["counted"] == "tokenizer" for line in site.journal if line["pool"] != "none")


def test_the_short_form_is_answered(site: Site) -> None:
    """`POST /generate` gives text, pool and reason."""
    site.server("pi")
    site.start()
    body = json.dumps({"prompt": ASKED["prompt"], "model_hint": "tiny", "max_tokens": 24, "temperature": 0}).encode()
    with urllib.request.urlopen(f"{site.url}/generate", data=body) as answer:
        found = json.load(answer)
    assert (found["text"], found["pool"], found["reason"]) == (ASKED["expected"], "edge", "tiny_edge")


def test_a_killed_server_in_the_middle_of_an_answer_is_not_noticed(site: Site) -> None:
    """kill -9 of the server that streams: the same text comes out as from a server that lives, in one stream."""
    for name in ("a", "b"):
        site.server(name)
    site.start()
    lively = {"messages": [{"role": "user", "content": golden("code")["prompt"]}], "max_tokens": 120, "temperature": 0}
    ignored = {"extra_body": {"ignore_eos": True}}
    wanted = _ask(site, **lively, **ignored).parse().choices[0].message.content

    stream = site.client.chat.completions.with_raw_response.create(model="auto", stream=True, **lively, **ignored)
    pieces: list[str] = []
    chunks = stream.parse()
    marks = []
    for chunk in chunks:
        pieces += [c.delta.content or "" for c in chunk.choices]
        marks += [chunk.model_extra["edge"]] if chunk.model_extra and "edge" in chunk.model_extra else []
        if len(pieces) == 5:
            site.servers[stream.headers["x-edge-endpoint"]].kill()
    assert "".join(pieces) == wanted
    (mark,) = marks
    assert (mark["reason"], mark["identical"]) == ("continued", True)
    assert mark["endpoint"] != stream.headers["x-edge-endpoint"]
    assert _ask(site).parse().choices[0].message.content == ASKED["expected"]


def test_a_terminated_gateway_finishes_what_it_began(site: Site) -> None:
    """After SIGTERM it is not ready, a stream under way comes to its end, and the process ends well."""
    site.server("pi")
    site.start(limits={"ready_s": 0.5})
    assert site.process is not None
    stream = _ask(site, stream=True, max_tokens=120, extra_body={"ignore_eos": True}).parse()
    count = 0
    for count, _ in enumerate(stream, start=1):
        if count == 3:
            site.process.send_signal(signal.SIGTERM)
    assert count > 100
    assert site.process.wait(30) == 0


def test_it_starts_from_its_copy_without_a_registry(site: Site) -> None:
    """With the registry gone, a gateway that ran before serves the release it held, and counts by its vocabulary."""
    site.server("pi")
    site.start()
    site.stop()
    (site.root / "registry").rename(site.root / "gone")
    site.start()
    assert _ask(site).parse().choices[0].message.content == ASKED["expected"]
    assert site.metric("gateway_release_version") == 1
    assert site.metric("gateway_tokenizer") == 1


def test_tokens_are_those_the_server_counts(site: Site, model: Path) -> None:
    """The count by the vocabulary equals the server's own for a chat of one turn."""
    site.server("pi")
    site.start()
    counted = counter(model)
    assert counted.counted is Counted.TOKENIZER
    for prompt in (ASKED["prompt"], golden("code")["prompt"], "x"):
        usage = _ask(site, messages=[{"role": "user", "content": prompt}]).parse().usage
        assert asyncio.run(counted.count([prompt], chat=True)) == usage.prompt_tokens
