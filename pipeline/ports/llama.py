"""llama.cpp in this process: tokenize with a GGUF file's vocabulary, and quantize.

Rules: llama.cpp's log is kept from the terminal, its last lines end an error's message; a file is read by our own
parser before llama.cpp opens it, whose checks may end the process. Decoding is the golden runner's.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.catalog.recipe import PRESETS, TENSOR_TYPES, Recipe
from pipeline.errors import StageError, ToolError, TrustError
from pipeline.manifest import gguf
from pipeline.ports import files

KV_INT, KV_STR = 0, 3  # llama_model_kv_override_type
SLAB_BYTES = 64 << 20  # rows of one tensor kept in memory while quantizing; llama.cpp's default is 8 GiB

_FALLBACK = re.compile(
    r"warning: (\S+) +- ncols +\d+ not divisible by +\d+ \(required for type +(\w+)\) .*?-> falling back to +(\w+)"
)
_STEP = re.compile(r"\[ *(\d+)/ *(\d+)\]")


@dataclass(frozen=True)
class Fallback:
    """A tensor whose rows do not fit the wanted type's blocks, and the type llama.cpp took instead."""

    tensor: str
    wanted: str
    taken: str


class _Log:
    """What llama.cpp said since the last `clear`, and who wants to hear of progress meanwhile."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._progress: Callable[[int, int], object] | None = None

    def clear(self, progress: Callable[[int, int], object] | None = None) -> None:
        self._pieces.clear()
        self._progress = progress

    def add(self, text: str) -> None:
        self._pieces.append(text)
        if self._progress and (step := _STEP.match(text)):
            self._progress(int(step[1]), int(step[2]))

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def tail(self) -> str:
        """The last lines, those that speak of errors where there are any."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip(" =.")]
        errors = [line for line in lines if re.search(r"error|fail|invalid|unknown", line, re.IGNORECASE)]
        return " | ".join((errors or lines)[-3:])


@dataclass(frozen=True)
class _Library:
    api: Any  # the untyped module llama_cpp
    log: _Log
    callback: Any  # kept here because llama.cpp may call it until the process ends


@cache
def _library() -> _Library:
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as e:
        raise ToolError(f"llama-cpp-python cannot be loaded: {e}", hint="make setup builds and installs it") from e
    log = _Log()

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def callback(_level: int, text: bytes, _user: object) -> None:
        log.add(text.decode(errors="replace"))

    llama_cpp.llama_log_set(callback, None)
    # Static destructors may still log after Python is gone.
    atexit.register(llama_cpp.llama_log_set, llama_cpp.llama_log_callback(), None)
    llama_cpp.llama_backend_init()
    return _Library(llama_cpp, log, callback)


def build_digest() -> str:
    """Return the hex SHA-256 over the loaded libraries: what quantized bytes and logits depend on."""
    folder = Path(_library().api.__file__).parent / "lib"
    lines = [f"{files.sha256_file(p)}  {p.name}\n" for p in sorted(folder.glob("lib*.so*"))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def header(path: Path) -> gguf.Header:
    """Return the header of a GGUF file.

    Raises:
        StageError: it is missing, cut short, or no GGUF file at all.
    """
    try:
        with path.open("rb") as f:
            return gguf.read_header(f, path.stat().st_size)
    except OSError as e:
        raise StageError(f"{path}: {e.strerror}", hint="run the stage that makes it: dvc repro") from e
    except TrustError as e:
        raise StageError(f"{path}: {e.message}", hint="remove it and run the stage that makes it: dvc repro") from e


def quantize(
    source: Path,
    out: Path,
    recipe: Recipe,
    imatrix: Mapping[str, NDArray[np.float32]] | None,
    threads: int,
    *,
    metadata: Mapping[str, str | int] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Fallback, ...]:
    """Write `source` quantized by `recipe` to `out`, tensor by tensor, and return where types had to give way.

    Args:
        imatrix: mean squared activations by tensor, as `llama-quantize --imatrix` averages them.
        metadata: entries added to the file's; texts of at most 127 bytes.
        progress: called with tensors begun and tensors in all.

    Raises:
        StageError: `source` is not a GGUF file.
        ToolError: llama.cpp refuses; its last lines are in the message.
    """
    header(source)
    library = _library()
    api = library.api
    kept: list[NDArray[np.float32]] = []
    params = api.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.max_buf_size = threads, PRESETS[recipe.base], SLAB_BYTES
    if recipe.tensors:
        params.tt_overrides = _overrides(api, recipe.overrides)
    if imatrix:
        params.imatrix, kept = _imatrix(api, imatrix)
    if metadata:
        params.kv_overrides = _metadata(api, metadata)
    library.log.clear(progress)
    failed = api.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    del kept  # the arrays llama.cpp read from lived until here
    if failed:
        out.unlink(missing_ok=True)
        raise ToolError(
            f"llama.cpp cannot quantize {source.name}: {library.log.tail}", hint="mend the recipe, or free disk space"
        )
    return tuple(
        Fallback(name, wanted.upper(), took.upper()) for name, wanted, took in _FALLBACK.findall(library.log.text)
    )


def _overrides(api: Any, tensors: Mapping[str, str]) -> Any:
    array = (api.llama_model_tensor_override * (len(tensors) + 1))()
    for entry, (pattern, kind) in zip(array, tensors.items(), strict=False):
        entry.pattern, entry.type = pattern.encode(), TENSOR_TYPES[kind]
    return array


def _imatrix(api: Any, imatrix: Mapping[str, NDArray[np.float32]]) -> tuple[Any, list[NDArray[np.float32]]]:
    kept = [np.ascontiguousarray(values, np.float32) for values in imatrix.values()]
    array = (api.llama_model_imatrix_data * (len(imatrix) + 1))()
    for entry, name, values in zip(array, imatrix, kept, strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return array, kept


def _metadata(api: Any, metadata: Mapping[str, str | int]) -> Any:
    array = (api.llama_model_kv_override * (len(metadata) + 1))()
    for entry, (key, value) in zip(array, metadata.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, int):
            entry.tag, entry.value.val_i64 = KV_INT, value
        else:
            entry.tag, entry.value.val_str = KV_STR, value.encode()[:127]
    return array


class Session:
    """A GGUF model's vocabulary and chat template, without its weights; close it, or use it in a `with` block.

    Raises:
        StageError: the file is no GGUF file.
        ToolError: llama.cpp cannot load it.
    """

    def __init__(self, path: Path) -> None:
        header(path)
        self._library = _library()
        self._api = api = self._library.api
        self._path = path
        params = api.llama_model_default_params()
        params.n_gpu_layers, params.vocab_only = 0, True
        self._library.log.clear()
        self._model = api.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ToolError(
                f"llama.cpp cannot load {path.name}: {self._library.log.tail}",
                hint="remove the file and run the stage that makes it: dvc repro",
            )
        self._vocab = api.llama_model_get_vocab(self._model)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        if self._model:
            self._api.llama_model_free(self._model)
            self._model = None

    @property
    def has_template(self) -> bool:
        """Whether the file carries a chat template."""
        return self._template is not None

    @property
    def begin(self) -> str:
        """The text of the token that `tokenize` puts in front; empty where it puts none."""
        return self._special("bos") if self._api.llama_vocab_get_add_bos(self._vocab) else ""

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Return the ids of `text`; special tokens written in it count as such.

        Args:
            add_special: put the model's own tokens around it, as at the start of a conversation.
        """
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = self._api.llama_tokenize(self._vocab, data, len(data), ids, len(ids), add_special, True)
        if count < 0:
            raise ToolError(f"{self._path.name}: llama.cpp cannot tokenize {text[:40]!r}", hint="shorten the text")
        return list(ids[:count])

    def count(self, text: str) -> int:
        """Return how many ids `tokenize` gives for `text` without the model's own tokens."""
        data = text.encode()
        return -int(self._api.llama_tokenize(self._vocab, data, len(data), None, 0, False, True))

    def turn(self, prompt: str, answer: str | None = None) -> list[int]:
        """Return the ids of `chat(prompt, answer)`; raises as `chat` and `tokenize` do."""
        return self.tokenize(self.chat(prompt, answer))

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens left out."""
        array = (ctypes.c_int32 * len(ids))(*ids)
        room = 64
        while True:
            out = ctypes.create_string_buffer(room)
            count = self._api.llama_detokenize(self._vocab, array, len(ids), out, room, False, False)
            if count >= 0:
                return out.raw[:count].decode(errors="replace")
            room = -count

    def chat(self, prompt: str, answer: str | None = None) -> str:
        """Return `prompt` as the user's turn in the model's chat template, with `answer` as the reply where given.

        Without a template it is the prompt, followed by the answer. The result is what `tokenize` takes.

        Raises:
            StageError: the template refuses the messages or needs what is not allowed in it.
        """
        if self._template is None:
            return prompt + (answer or "")
        from jinja2 import TemplateError

        messages = [{"role": "user", "content": prompt}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        try:
            text: str = self._template.render(
                messages=messages,
                add_generation_prompt=answer is None,
                bos_token=self._special("bos"),
                eos_token=self._special("eos"),
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as e:
            raise self._bad_template(e) from e
        # `tokenize` adds this token itself, as it does for raw prompts.
        return text.removeprefix(self.begin)

    @cached_property
    def _template(self) -> Any:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        source = self._api.llama_model_chat_template(self._model, None)
        if not source:
            return None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse_messages
        try:
            return environment.from_string(source.decode())
        except (TemplateError, UnicodeDecodeError, RecursionError) as e:
            raise self._bad_template(e) from e

    def _bad_template(self, error: Exception) -> StageError:
        return StageError(
            f"{self._path.name}: its chat template fails: {' '.join(str(error).split())}",
            hint="mend tokenizer.chat_template in the source model",
        )

    def _special(self, name: str) -> str:
        token = getattr(self._api, f"llama_vocab_{name}")(self._vocab)
        return "" if token < 0 else str(self._api.llama_vocab_get_text(self._vocab, token).decode())


def _refuse_messages(message: str) -> None:
    from jinja2 import TemplateRuntimeError

    raise TemplateRuntimeError(message)
