"""How a server is started: slots, context and threads from what was measured and the machine."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.catalog.names import Variant
from pipeline.errors import StageError
from pipeline.manifest.evidence import File
from pipeline.manifest.statement import ModelConfig, VariantEntry
from pipeline.serving.node import sizing
from pipeline.serving.node.sizing import Asked, Model, Sizing, size
from tests.support import evidence

MIB, GIB = 1 << 20, 1 << 30
EDGE = Variant.parse("tiny-edge-arm64")
# Of the kind of Llama 3.2 1B in Q4_K_M: 16 layers, 8 of 32 heads cached, 64 wide.
ONE_B = Model(
    weights=800 * MIB, per_token=16 * 8 * 128 * 4, scores_per_token=32 * 512 * 4, work=200 * MIB, context=131072
)
SEVEN_B = Model(
    weights=4700 * MIB, per_token=32 * 8 * 256 * 4, scores_per_token=32 * 512 * 4, work=400 * MIB, context=8192
)


@pytest.mark.parametrize(
    ("model", "memory", "cores", "asked", "wanted"),
    [
        pytest.param(ONE_B, 8 * GIB, 4, Asked(), (3, 8192, 4, True), id="1B on a Pi 5 with 8 GB"),
        pytest.param(ONE_B, 4 * GIB, 4, Asked(), (2, 2048, 4, True), id="1B on a Pi 5 with 4 GB"),
        pytest.param(ONE_B, 2 * GIB, 4, Asked(), (2, 2048, 4, False), id="1B with 2 GB: no room for two"),
        pytest.param(SEVEN_B, 8 * GIB, 4, Asked(), (1, 4096, 4, False), id="7B on a Pi 5 with 8 GB: no room for two"),
        pytest.param(SEVEN_B, 64 * GIB, 32, Asked(), (8, 8192, 32, True), id="a server: not more than eight slots"),
        pytest.param(ONE_B, 8 * GIB, 4, Asked(slots=2, context=1000, threads=3), (2, 1024, 3, True), id="as asked"),
        pytest.param(ONE_B, 64 * GIB, 4, Asked(context=32768), (4, 32768, 4, True), id="longer than usual, as asked"),
    ],
)  # fmt: skip
def test_known_machines(model: Model, memory: int, cores: int, asked: Asked, wanted: tuple[Any, ...]) -> None:
    """What comes out for machines one knows."""
    found = size(model, memory=memory, cores=cores, asked=asked)
    assert (found.slots, found.context, found.threads, found.beside) == wanted


@pytest.mark.parametrize("asked", [Asked(), Asked(slots=4), Asked(context=65536)])
def test_what_does_not_fit_is_told_of(asked: Asked) -> None:
    """A machine without the memory gets an error that names it, not a server that the kernel kills."""
    with pytest.raises(StageError, match="this machine has 1024 MiB"):
        size(ONE_B, memory=GIB, cores=4, asked=asked)


MODELS = st.builds(
    Model,
    weights=st.integers(MIB, 40 * GIB),
    per_token=st.integers(1, 4 * MIB),
    scores_per_token=st.integers(1, MIB),
    work=st.integers(0, 4 * GIB),
    context=st.integers(1, 1 << 20),
)


def _size(model: Model, memory: int, cores: int) -> Sizing | None:
    try:
        return size(model, memory=memory, cores=cores)
    except StageError:
        return None


@given(MODELS, st.integers(MIB, 1 << 40), st.integers(1, 256))
def test_it_always_fits(model: Model, memory: int, cores: int) -> None:
    """What is started never plans more than its share, twice where two are to stand side by side."""
    found = _size(model, memory, cores)
    assume(found is not None)
    assert found is not None
    assert found.bytes * (2 if found.beside else 1) <= memory * sizing.SHARE
    assert 1 <= found.slots <= min(cores, sizing.MOST_SLOTS)
    assert found.context % sizing.STEP == 0
    assert sizing.STEP <= found.context <= max(sizing.STEP, -(-model.context // sizing.STEP) * sizing.STEP)


@given(MODELS, st.integers(MIB, 1 << 36), st.integers(1, 64))
def test_more_memory_never_gives_less(model: Model, memory: int, cores: int) -> None:
    """A machine with more memory never refuses what one with less can run, nor gives up standing side by side."""
    less, more = _size(model, memory, cores), _size(model, 2 * memory, cores)
    if less is not None:
        assert more is not None
        assert more.beside >= less.beside


def _entry(**more: Any) -> VariantEntry:
    files = [
        File(name="model.gguf", size=100 * MIB, sha256="0" * 64),
        File(name="golden.jsonl", size=9, sha256="1" * 64),
    ]
    config = ModelConfig(architecture="llama", parameters=1, layers=4, hidden=256, vocabulary=3, context=512)
    fields = {"evidence": [], "measurements": [], "recipe": {}, **more}
    return VariantEntry(
        name=EDGE.name, tier=EDGE.tier, target=EDGE.target, format="gguf", files=files, model=config, **fields
    )  # fmt: skip


def test_a_models_own_figures_are_read_from_its_file() -> None:
    """Layers, cached heads and their width come from the file; work from the measured peak, less what is counted."""
    metadata = {"llama.block_count": 4, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
                "llama.embedding_length": 256, "llama.attention.key_length": 32, "llama.attention.value_length": 64}  # fmt: skip
    proven = evidence.evidence(EDGE).model_copy(update={"engine": {"context": "256"}})
    measured = evidence.measurement(EDGE).model_copy(update={"peak_rss_bytes": 300 * MIB})
    found = sizing.model(_entry(evidence=[proven], measurements=[measured]), metadata)
    per_token = 4 * 2 * (32 + 64) * 4
    assert found == Model(100 * MIB, per_token, 4 * 512 * 4, 200 * MIB - 256 * per_token, 512)


def test_what_is_not_said_is_taken_at_its_most() -> None:
    """Without the file's figures and without measurements the manifest's shape bounds what is needed."""
    found = sizing.model(_entry(), {})
    assert found.per_token == 4 * 4 * (64 + 64) * 4
    assert found.work == sizing.LEAST_WORK


def test_nonsense_is_refused() -> None:
    """Nothing can be asked for in less than one."""
    with pytest.raises(ValueError, match="at least 1"):
        Asked(slots=0)
