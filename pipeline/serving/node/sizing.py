"""How many requests at once, of how many tokens, on how many threads: from what was measured and this machine.

Rules: pure; what a user asks for beats what is computed. Two servers stand side by side while a release takes over, so
half of the memory is planned for each; where that leaves too short a context, the whole is, and a new release then
takes over only after the old one stopped (`beside` is false).

Bytes of a server: its weights; f32 keys and values of each token of each slot; the scores of one batch, because flash
attention is off (https://github.com/ggml-org/llama.cpp/blob/master/src/llama-graph.cpp, `build_attn_mha`); prompts that
are kept for later; and what the checks measured on top of the weights, the peak resident bytes of the process that
decoded the golden prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import StageError
from pipeline.manifest import gguf
from pipeline.manifest.statement import VariantEntry

F32_BYTES = 4
BATCH = 512  # tokens decoded together, llama-server's --ubatch-size
STEP = 256  # tokens; llama.cpp rounds a slot's context up to this
SHARE = 0.8  # of the memory; the rest is the system's and the page cache's
LONGEST = 8192  # tokens a slot, unless more is asked for
ENOUGH = 1024  # tokens a slot below which two servers at once are not worth it
MOST_SLOTS = 8
LEAST_WORK = 64 << 20  # bytes
PROMPT_CACHE = 128 << 20  # bytes of prompts that left their slots; llama-server's own default is 8 GiB


@dataclass(frozen=True)
class Model:
    """What a model takes: bytes of its weights, of a token in a slot, of a token's scores, and of everything else.

    `context` is in tokens, as trained.
    """

    weights: int
    per_token: int
    scores_per_token: int
    work: int
    context: int


@dataclass(frozen=True)
class Asked:
    """What the user wants otherwise than computed; `context` in tokens a slot."""

    slots: int | None = None
    context: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for less than one."""
        if any(n is not None and n < 1 for n in (self.slots, self.context, self.threads)):
            raise ValueError("slots, context and threads are at least 1")


@dataclass(frozen=True)
class Sizing:
    """How to start a server; `context` is in tokens a slot, `bytes` what it takes at most."""

    slots: int
    context: int
    threads: int
    bytes: int
    beside: bool


def model(entry: VariantEntry, metadata: Mapping[str, gguf.Value]) -> Model:
    """Return what a variant takes, by its manifest's entry and its file's own metadata."""
    layers, heads, cached = _attention(entry, metadata)
    weights = sum(f.size for f in entry.files if f.name.endswith(".gguf"))
    per_token = layers * cached * F32_BYTES
    return Model(
        weights=weights,
        per_token=per_token,
        scores_per_token=heads * BATCH * F32_BYTES,
        work=_work(entry, weights, per_token),
        context=entry.model.context,
    )


def size(model: Model, *, memory: int, cores: int, asked: Asked = Asked(), most: int | None = None) -> Sizing:
    """Return how to start a server.

    Args:
        memory: bytes this machine has.
        most: slots at most where none are asked for, by default as many as cores, and no more than `MOST_SLOTS`.

    Raises:
        StageError: not even one slot of the shortest context fits.
    """
    threads = asked.threads or max(1, cores)
    for beside, least in ((True, ENOUGH), (False, STEP)):
        budget = int(memory * SHARE) // (2 if beside else 1)
        for context in _contexts(model, asked, least):
            room = (budget - _fixed(model, context)) // max(1, model.per_token * context)
            slots = min(room, asked.slots or most or min(max(1, cores), MOST_SLOTS))
            if slots >= (asked.slots or 1):
                needed = _fixed(model, context) + slots * context * model.per_token
                return Sizing(slots, context, threads, needed, beside)
    needed = _fixed(model, STEP) + (asked.slots or 1) * STEP * model.per_token
    raise StageError(
        f"the model needs {needed >> 20} MiB at least, and this machine has {memory >> 20} MiB",
        hint="choose a smaller variant, or fewer --slots and a shorter --context",
    )


def _contexts(model: Model, asked: Asked, least: int) -> list[int]:
    if asked.context:
        return [_rounded(asked.context)]
    longest = _rounded(min(model.context, LONGEST))
    found = [_rounded(longest >> shift) for shift in range(8)]
    return [context for context in found if context >= min(least, longest)]


def _rounded(tokens: int) -> int:
    return max(STEP, -(-tokens // STEP) * STEP)


def _fixed(model: Model, context: int) -> int:
    return model.weights + model.work + PROMPT_CACHE + context * model.scores_per_token


def _work(entry: VariantEntry, weights: int, per_token: int) -> int:
    if not entry.measurements:
        return max(LEAST_WORK, weights // 4)
    contexts = [int(e.engine.get("context", "0")) for e in entry.evidence if e.engine.get("context", "").isdecimal()]
    cached = max(contexts, default=0) * per_token
    return max(LEAST_WORK, max(m.peak_rss_bytes for m in entry.measurements) - weights - cached)


def _attention(entry: VariantEntry, metadata: Mapping[str, gguf.Value]) -> tuple[int, int, int]:
    """Layers, heads, and numbers cached a token and layer; where the file does not say, the most it can be."""

    def number(key: str, otherwise: int) -> int:
        value = metadata.get(f"{entry.model.architecture}.{key}")
        return value if isinstance(value, int) and value > 0 else otherwise

    hidden = number("embedding_length", entry.model.hidden)
    heads = number("attention.head_count", max(1, hidden // 64))
    width = number("attention.key_length", -(-hidden // heads))
    both = width + number("attention.value_length", width)
    return number("block_count", entry.model.layers), heads, number("attention.head_count_kv", heads) * both
