"""What the large server makes of requests, tokens and sizes, without an engine."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline.catalog.golden import GoldenPrompt
from pipeline.catalog.names import Target, Tier, Variant
from pipeline.errors import StageError, ToolError
from pipeline.manifest.evidence import File
from pipeline.manifest.statement import ModelConfig, VariantEntry
from pipeline.serving.large import asked, probe, sizing
from pipeline.serving.large.asked import Chat, Completion, RefusedError, parse
from pipeline.serving.large.backend import vllm
from pipeline.serving.large.batching import Sampling
from pipeline.serving.large.text import Text
from pipeline.serving.node.probe import Question
from pipeline.serving.node.sizing import Sizing, size

MESSAGES = [{"role": "user", "content": "tea?"}]


def chat(**more: Any) -> Chat:
    return parse(Chat, json.dumps({"messages": MESSAGES, **more}).encode())


def letters() -> Tokenizer:
    """A tokenizer whose tokens are single characters."""
    vocabulary = {character: n for n, character in enumerate("abcdefgh é")}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return made


LETTERS = letters()


@pytest.mark.parametrize("name", sorted(asked.NEUTRAL))
def test_what_would_change_an_answer_is_refused_unless_it_changes_nothing(name: str) -> None:
    """Each field that is not supported is refused by its name, and taken where it says what is done anyway."""
    for value in (None, *asked.NEUTRAL[name]):
        chat(**{name: value})
    with pytest.raises(RefusedError) as refused:
        chat(**{name: "something else"})
    assert refused.value.param == name


def test_both_names_of_the_limit_count() -> None:
    """`max_completion_tokens` counts before `max_tokens`; a completion without either has OpenAI's 16."""
    assert chat().limit is None
    assert chat(max_tokens=5).limit == 5
    assert chat(max_tokens=5, max_completion_tokens=7).limit == 7
    assert parse(Completion, b'{"prompt": "tea"}').limit == 16


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"prompt": []}', b'{"prompt": 3}', b"\xff", b'{"prompt": "a", "stop": 3}']
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    """Never an exception of another kind."""
    with pytest.raises(RefusedError):
        parse(Completion, body)


@given(st.text("abcdefgh é", max_size=40), st.lists(st.text("abé ", min_size=1, max_size=3), max_size=3))
def test_text_ends_before_the_first_stop(text: str, stops: list[str]) -> None:
    """However the tokens come, what is told is the text before the first stop text, whole."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    made, told = Text(LETTERS, [], stops), ""
    for token in LETTERS.encode(text).ids:
        told += made.add([token])
    if not made.stopped:
        told += made.end()
    ends_at = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=None)
    if ends_at is None:
        assert (told, made.stopped) == (text, False)
    else:
        assert made.stopped
        assert text.startswith(told)
        assert len(told) in places


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (Sampling(), {"temperature": 1.0, "top_k": 1, "top_p": 1.0}),
        (Sampling(0.7), {"temperature": 0.7, "top_k": 300, "top_p": 1.0}),
        (Sampling(0.7, 0.9, 40), {"temperature": 0.7, "top_k": 40, "top_p": 0.9}),
        (Sampling(0.7, top_k=1000), {"temperature": 0.7, "top_k": 300, "top_p": 1.0}),
    ],
)
def test_sampling_in_the_engines_words(sampling: Sampling, words: dict[str, Any]) -> None:
    """Greedy is the best token alone; a top-k never exceeds the vocabulary."""
    assert sampling.processors(300) == words


def test_the_models_own_sampling(tmp_path: Path) -> None:
    """What `generation_config.json` says, and greedy where it does not sample."""
    assert Sampling.of(tmp_path) == Sampling()
    file = tmp_path / "generation_config.json"
    file.write_text('{"temperature": 0.6}')
    assert Sampling.of(tmp_path) == Sampling()
    file.write_text('{"do_sample": true, "temperature": 0.6, "top_k": 20}')
    assert Sampling.of(tmp_path) == Sampling(0.6, 1.0, 20)


def test_sizes_follow_memory() -> None:
    """A 13B model on two GPUs of 80 GB gets many slots; without room for one there is an error, not a crash later."""
    variant = Variant(Tier.LARGE, Target.X86_64)
    files = [File(name="model-rank-00000-of-00002.safetensors", size=13 << 30, sha256="0" * 64)] * 2
    shape = ModelConfig(architecture="llama", parameters=1, layers=40, hidden=5120, vocabulary=32000, context=4096)
    entry = VariantEntry(
        name=variant.name, tier=variant.tier, target=variant.target, format="safetensors", files=files, model=shape,
        evidence=[], measurements=[], recipe={},
    )  # fmt: skip
    config = {"hidden_size": 5120, "num_attention_heads": 40, "num_hidden_layers": 40, "vocab_size": 32000}
    model = sizing.model(entry, config, "bf16", gpu=True)
    assert model.per_token > 2 * 40 * 5120 * 2
    found = size(model, memory=160 << 30, cores=4, most=sizing.GPU_SLOTS)
    assert found.slots > 4
    with pytest.raises(StageError):
        size(model, memory=1 << 20, cores=4, most=sizing.GPU_SLOTS)
    with pytest.raises(StageError):
        sizing.model(entry, {}, "bf16", gpu=True)


class Scripted:
    """A server that gives the same tokens to every prompt."""

    def __init__(self, tokens: object) -> None:
        self._tokens = tokens

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": [1, 2]} if path == "/tokenize" else {"choices": [{"token_ids": self._tokens}]}


@pytest.mark.parametrize(
    ("tokens", "right"), [([5, 6], True), ([5, 6, 9], True), ([5], False), ([5, 6, 7], False), ([9, 5, 6], False)]
)
def test_golden_answers_are_the_evidences_tokens(tokens: list[int], right: bool) -> None:
    """With the end token or without, and nothing else."""
    prompt = GoldenPrompt(id="a", family="f", prompt="tea?", expected="x", max_tokens=3)
    wrong = asyncio.run(probe.check(Scripted(tokens), "m", [Question(prompt, ((5, 6),))], frozenset({9})))
    assert (wrong is None) is right


def test_an_engine_without_token_ids_cannot_be_proven() -> None:
    """It is an error that says so."""
    prompt = GoldenPrompt(id="a", family="f", prompt="tea?", expected="x", max_tokens=3)
    with pytest.raises(ToolError, match="token ids"):
        asyncio.run(probe.check(Scripted(None), "m", [Question(prompt, ((5,),))], frozenset()))
    assert asyncio.run(probe.check(Scripted([5]), "m", [], frozenset())) is not None


def test_vllms_command_line() -> None:
    """As many GPUs as shards, the sizes, loopback alone."""
    sizing = Sizing(16, 2048, 1, 4096, beside=True)
    argv = vllm("/bin/vllm", Path("/m"), "large-x86_64", degree=4, sizing=sizing, port=9, gpu=True)
    pairs = dict(itertools.pairwise(argv))
    assert argv[:3] == ["/bin/vllm", "serve", "/m"]
    assert (pairs["--tensor-parallel-size"], pairs["--max-num-seqs"], pairs["--max-model-len"]) == ("4", "16", "2048")
    assert (pairs["--host"], pairs["--port"], pairs["--served-model-name"]) == ("127.0.0.1", "9", "large-x86_64")
    assert pairs["--gpu-memory-utilization"] == "0.4"
    shared = vllm("/bin/vllm", Path("/m"), "large-x86_64", degree=4, sizing=sizing, port=9, gpu=False)
    assert dict(itertools.pairwise(shared))["--kv-cache-memory-bytes"] == "1024"
