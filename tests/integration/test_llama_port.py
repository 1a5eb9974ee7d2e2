"""Decoding through llama.cpp: what transformers computes, the same tokens every time, and no crash on broken files."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.catalog.names import Tier
from pipeline.errors import StageError, ToolError
from pipeline.stages.project import Project
from tests.support.projects import gguf_tier, project

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make setup builds and installs it")

from pipeline.ports import llama
from pipeline.stages.convert import convert
from pipeline.toolchain import host
from tests.support import models

PROMPT = "where is the black tea?"
DISTILL = {"layers": [0, 1], "ffn": 512, "steps": 1, "batch": 1, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def tier(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a converted f32 model whose tokenizer has a chat template."""
    try:
        host.find()
    except ToolError as e:
        pytest.skip(f"{e.message}: {e.hint}")
    settings = gguf_tier(distill=DISTILL, convert={"outtype": "f32", "pre_tokenizer": "gpt-2"})
    teacher = {"embedded": {"path": "models/demo/teacher", "digest": "sha256:" + "0" * 64}}
    made = project(tmp_path_factory.mktemp("port"), teacher, {"tiny-edge": settings})
    models.save(made.model(Tier.TINY_EDGE), models.llama())
    convert(made, Tier.TINY_EDGE)
    return made


@pytest.fixture(scope="module")
def gguf(tier: Project) -> Path:
    return tier.gguf(Tier.TINY_EDGE)


@pytest.fixture(scope="module")
def session(gguf: Path) -> Iterator[llama.Session]:
    with llama.Session(gguf, context=128) as opened:
        yield opened


def with_template(gguf: Path, template: str, out: Path) -> Path:
    """A copy of a file with another chat template, padded to the old one's length."""
    old = models.TEMPLATE.encode()
    new = template.encode().ljust(len(old))
    assert len(new) == len(old)
    out.write_bytes(gguf.read_bytes().replace(old, new))
    return out


def test_logits_are_those_of_transformers(tier: Project, session: llama.Session) -> None:
    """Teacher-forced logits of an f32 model differ from transformers' by less than 1e-3 at every position."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tier.model(Tier.TINY_EDGE), dtype=torch.float32).eval()
    ids = session.tokenize(session.chat(PROMPT))
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    found = session.logits(ids)
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-3


def test_logits_do_not_depend_on_how_they_are_batched(session: llama.Session) -> None:
    """A prefix has the same logits as the whole has there, whatever was decoded before."""
    ids = session.tokenize(PROMPT * 4)
    assert np.abs(session.logits(ids)[:20] - session.logits(ids[:20])).max() < 1e-4


def test_greedy_is_repeatable(gguf: Path, session: llama.Session) -> None:
    """The same prompt gives the same tokens again, in this session and in a new one."""
    ids = session.tokenize(session.chat(PROMPT))
    first = session.greedy(ids, 24).tokens
    with llama.Session(gguf, context=128) as other:
        assert first == session.greedy(ids, 24).tokens == other.greedy(ids, 24).tokens


def test_greedy_takes_the_most_likely_token(session: llama.Session) -> None:
    """Each generated token is the maximum of the teacher-forced logits before it."""
    ids = session.tokenize(session.chat(PROMPT))
    generated = session.greedy(ids, 12).tokens
    forced = session.logits([*ids, *generated]).argmax(axis=-1)
    assert list(generated) == forced[len(ids) - 1 : len(ids) - 1 + len(generated)].tolist()


def test_every_later_token_has_a_duration(session: llama.Session) -> None:
    """There is one time to the first token and one duration for each later one, all positive."""
    found = session.greedy(session.tokenize(PROMPT), 8)
    assert len(found.step_ns) == max(0, len(found.tokens) - 1)
    assert min(found.ttft_ns, *found.step_ns) > 0


def test_an_end_token_ends_the_answer(gguf: Path, session: llama.Session, tmp_path: Path) -> None:
    """Decoding stops at the first end token, which is not part of the answer."""
    ids = session.tokenize(PROMPT)
    tokens = session.greedy(ids, 24).tokens
    at = next(i for i, token in enumerate(tokens) if i and token not in tokens[:i])
    key = b"tokenizer.ggml.eos_token_id" + struct.pack("<I", 4)
    data = gguf.read_bytes()
    place = data.index(key) + len(key)
    (tmp_path / "ends.gguf").write_bytes(data[:place] + struct.pack("<I", tokens[at]) + data[place + 4 :])
    with llama.Session(tmp_path / "ends.gguf", context=128) as other:
        assert other.greedy(ids, 24).tokens == tokens[:at]


@pytest.mark.parametrize(
    "text", [PROMPT, "<|user|>tea 42<|assistant|>", "", "äöü 🫖 \n\t x"], ids=["plain", "special", "empty", "unicode"]
)
def test_tokens_are_those_of_transformers(tier: Project, session: llama.Session, text: str) -> None:
    """Text is split as the model's own tokenizer splits it, special tokens included, and comes back from its ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tier.model(Tier.TINY_EDGE))
    wanted = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = session.tokenize(text, add_special=False)
    assert ids == wanted
    assert session.text(ids) == tokenizer.decode(wanted, skip_special_tokens=True)


def test_chat_is_the_models_own_template(tier: Project, session: llama.Session) -> None:
    """A prompt becomes the token ids that transformers' chat template gives, with the first token there once."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tier.model(Tier.TINY_EDGE))
    turn = [{"role": "user", "content": PROMPT}]
    wanted = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=True)[
        "input_ids"
    ]
    assert session.tokenize(session.chat(PROMPT)) == wanted
    assert session.tokenize(session.chat(PROMPT, "aisle 12")) == tokenizer.encode(
        tokenizer.apply_chat_template([*turn, {"role": "assistant", "content": "aisle 12"}], tokenize=False),
        add_special_tokens=False,
    )


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        pytest.param("{{ raise_exception('users only') }}", "users only", id="refuses-messages"),
        pytest.param("{{ ''.__class__.__mro__ }}", "unsafe", id="reaches-for-python"),
        pytest.param("{{ messages.append(1) }}", "unsafe", id="changes-its-input"),
        pytest.param("{{ messages[9].content.x }}", "no element 9", id="breaks"),
        pytest.param("{% if %}", "Expected", id="does-not-parse"),
    ],
)
def test_a_template_cannot_do_harm(gguf: Path, tmp_path: Path, template: str, reason: str) -> None:
    """A chat template that fails or reaches beyond its messages is one clear error."""
    path = with_template(gguf, template, tmp_path / "model.gguf")
    with llama.Session(path, vocab_only=True) as session, pytest.raises(StageError, match=reason):
        session.chat(PROMPT)


def test_without_a_template_the_prompt_stays_as_it_is(gguf: Path, tmp_path: Path) -> None:
    """A file without a chat template gets the prompt itself."""
    data = gguf.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_no_thing")
    (tmp_path / "raw.gguf").write_bytes(data)
    with llama.Session(tmp_path / "raw.gguf", vocab_only=True) as session:
        assert not session.has_template
        assert session.chat(PROMPT) == PROMPT
        assert session.chat(PROMPT, "aisle 12") == f"{PROMPT}aisle 12"


def broken_empty(data: bytes) -> bytes:
    return data[:0]


def broken_header(data: bytes) -> bytes:
    return data[:2000]


def broken_weights(data: bytes) -> bytes:
    return data[: len(data) - len(data) // 3]


def broken_text(data: bytes) -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\n"


def broken_magic(data: bytes) -> bytes:
    return b"GGUF" + bytes(range(256)) * 8


def broken_architecture(data: bytes) -> bytes:
    return data.replace(b"llama", b"lmaal")


@pytest.mark.parametrize(
    "broken",
    [broken_empty, broken_header, broken_weights, broken_text, broken_magic, broken_architecture],
    ids=lambda f: f.__name__.removeprefix("broken_"),
)
def test_a_broken_file_is_one_clear_error(gguf: Path, tmp_path: Path, broken: Callable[[bytes], bytes]) -> None:
    """A cut, foreign or unknown file is refused with its name in the message, and the process lives."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(broken(gguf.read_bytes()))
    with pytest.raises((StageError, ToolError), match=r"broken\.gguf") as e:
        llama.Session(path)
    assert "\n" not in e.value.message


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(StageError, match=r"none\.gguf: No such file"):
        llama.Session(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("count", "more", "reason"),
    [
        pytest.param(0, 1, "no tokens", id="empty-prompt"),
        pytest.param(129, 0, "129 tokens do not fit a context of 128", id="prompt-too-long"),
        pytest.param(120, 9, "120 tokens and 9 to generate do not fit", id="answer-too-long"),
    ],
)
def test_what_does_not_fit_is_refused(session: llama.Session, count: int, more: int, reason: str) -> None:
    """Too few or too many tokens are a clear error before anything is decoded."""
    with pytest.raises(StageError, match=reason):
        session.greedy([5] * count, more)


def test_a_full_context_can_be_used(session: llama.Session) -> None:
    """Exactly as many tokens as the context has are decoded."""
    assert len(session.greedy([5] * 120, 8).tokens) <= 8
    assert session.logits([5] * 128).shape == (128, session.vocabulary)


def test_foreign_ids_are_one_clear_error(session: llama.Session) -> None:
    """An id the vocabulary lacks is refused, and the session can be used afterwards."""
    with pytest.raises(ToolError, match="cannot decode"):
        session.greedy([session.vocabulary], 1)
    assert session.greedy([5], 1).tokens is not None


def test_closing_twice_is_harmless(gguf: Path) -> None:
    """A second close does nothing."""
    session = llama.Session(gguf)
    session.close()
    session.close()
