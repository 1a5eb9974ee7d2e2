"""Text and tokens through llama.cpp: those of transformers, and no crash on broken files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

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
    with llama.Session(gguf) as opened:
        yield opened


def with_template(gguf: Path, template: str, out: Path) -> Path:
    """A copy of a file with another chat template, padded to the old one's length."""
    old = models.TEMPLATE.encode()
    new = template.encode().ljust(len(old))
    assert len(new) == len(old)
    out.write_bytes(gguf.read_bytes().replace(old, new))
    return out


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
    with llama.Session(path) as session, pytest.raises(StageError, match=reason):
        session.chat(PROMPT)


def test_without_a_template_the_prompt_stays_as_it_is(gguf: Path, tmp_path: Path) -> None:
    """A file without a chat template gets the prompt itself."""
    data = gguf.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_no_thing")
    (tmp_path / "raw.gguf").write_bytes(data)
    with llama.Session(tmp_path / "raw.gguf") as session:
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


def test_closing_twice_is_harmless(gguf: Path) -> None:
    """A second close does nothing."""
    session = llama.Session(gguf)
    session.close()
    session.close()
