"""The chunk index follows from a model file's bytes, and is believed only where everything about it is right."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import Refusal, TrustError
from pipeline.manifest import chunks, gguf, statement
from pipeline.manifest.chunks import MAX_CHUNK, MAX_CHUNKS, Chunk, Index
from pipeline.manifest.encoding import canonical, sha256
from pipeline.manifest.evidence import File
from tests.support.changed import WORDS, layers, model
from tests.support.releases import Publisher, safetensors_bytes


def cut(data: bytes, name: str = "model.gguf") -> list[Chunk]:
    return list(chunks.cut(name, io.BytesIO(data), len(data)))


def file(data: bytes) -> File:
    return File(name="model.gguf", size=len(data), sha256=sha256(data))


DATA = model(layers(5), words=WORDS)
FILE = file(DATA)


def made() -> tuple[Index, bytes]:
    found = chunks.index(FILE, cut(DATA))
    assert found is not None
    return found


@settings(max_examples=40)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.text("ab", max_size=40))
def test_chunks_tile_the_file(rows: list[int], said: str) -> None:
    """They follow one another from the file's start to its end, one begins at each tensor, digests are of the bytes."""
    data = model({f"t{number}": (count, number) for number, count in enumerate(rows)}, said)
    found = cut(data)
    assert b"".join(data[c.offset : c.offset + c.size] for c in found) == data
    assert all(sha256(data[c.offset : c.offset + c.size]) == c.sha256 for c in found)
    tensors = gguf.read_header(io.BytesIO(data), len(data)).tensors
    assert {t.offset for t in tensors} <= {c.offset for c in found}


def test_a_long_tensor_is_cut_at_the_bound() -> None:
    """Pieces count from the tensor's start, so that they stay the same where the tensor moves."""
    tensors = {"long": (9 << 10, 1)}
    before, after = cut(model(tensors)), cut(model(tensors, said="x" * 1000))
    assert max(c.size for c in before) == MAX_CHUNK
    assert {c.sha256 for c in before[-3:]} == {c.sha256 for c in after[-3:]}


def test_shards_are_cut_at_their_tensors() -> None:
    """A safetensors file has its header, then its tensors."""
    data = safetensors_bytes(3)
    assert [c.size for c in cut(data, "model.safetensors")] == [len(data) - 1024, 1024]


def test_the_vocabulary_is_a_chunk_of_its_own() -> None:
    """Another name of the model, or another list of tensors, leaves the long entry's chunk as it is."""
    vocabulary = max(cut(DATA)[:4], key=lambda c: c.size)
    assert vocabulary.size > 50_000
    for other in (model(layers(5), "another name", WORDS), model(layers(9), words=WORDS)):
        assert vocabulary.sha256 in {c.sha256 for c in cut(other)}


def test_an_index_round_trips() -> None:
    """What is read from an index is what was cut, and it says which file it is of."""
    index, data = made()
    assert chunks.parse(data, index, FILE) == tuple(cut(DATA))
    assert (index.file, index.size, index.sha256) == ("model.gguf", len(data), sha256(data))


def test_a_file_of_too_many_chunks_has_no_index() -> None:
    """The bound of readers is the bound of writers."""
    assert chunks.index(FILE, [Chunk(0, 1, "0" * 64)] * (MAX_CHUNKS + 1)) is None


def _changed(change: Callable[[dict[str, Any]], None]) -> tuple[Index, bytes]:
    """An index of other content that is signed all the same."""
    index, data = made()
    document = json.loads(data)
    change(document)
    data = canonical(document)
    return index.model_copy(update={"size": len(data), "sha256": sha256(data)}), data


HOSTILE: dict[str, tuple[Callable[[], tuple[Index, bytes]], Refusal]] = {
    "a bit changed": (lambda: (made()[0], made()[1][:-2] + b"]]"), Refusal.TAMPERED),
    "more bytes than signed": (lambda: (made()[0], made()[1] + b" "), Refusal.OVERSIZED),
    "cut short": (lambda: (made()[0], made()[1][:-9]), Refusal.TAMPERED),
    "of another file": (lambda: _changed(lambda d: d.update(sha256="0" * 64)), Refusal.SWAPPED),
    "of a file of another size": (lambda: _changed(lambda d: d.update(size=d["size"] + 1)), Refusal.SWAPPED),
    "a chunk missing": (lambda: _changed(lambda d: d["chunks"].pop()), Refusal.MALFORMED),
    "a chunk twice": (lambda: _changed(lambda d: d["chunks"].append(d["chunks"][-1])), Refusal.MALFORMED),
    "a chunk of no bytes": (lambda: _changed(lambda d: d["chunks"].append([0, "0" * 64])), Refusal.MALFORMED),
    "a chunk of less than none": (lambda: _changed(lambda d: d["chunks"].append([-1, "0" * 64])), Refusal.MALFORMED),
    "a chunk too large to hold": (
        lambda: _changed(lambda d: d.update(chunks=[[MAX_CHUNK + 1, "0" * 64]])), Refusal.MALFORMED,
    ),
    "a chunk of a huge size": (lambda: _changed(lambda d: d.update(chunks=[[10**30, "0" * 64]])), Refusal.MALFORMED),
    "too many chunks": (
        lambda: _changed(lambda d: d.update(chunks=[[1, "0" * 64]] * (MAX_CHUNKS + 1))), Refusal.MALFORMED,
    ),
    "no digest": (lambda: _changed(lambda d: d.update(chunks=[[1, "zz"]])), Refusal.MALFORMED),
    "of another kind": (lambda: _changed(lambda d: d.update(_type="other")), Refusal.MALFORMED),
    "nested without end": (
        lambda: (Index(file="model.gguf", size=100_000, sha256=sha256(b"[" * 100_000)), b"[" * 100_000),
        Refusal.MALFORMED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_index_is_refused(case: str) -> None:
    """Whatever is wrong with an index, signed or not, it is refused before any chunk of it is looked at."""
    make, refusal = HOSTILE[case]
    index, data = make()
    with pytest.raises(TrustError) as caught:
        chunks.parse(data, index, FILE)
    assert caught.value.refusal is refusal


NAMED: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "of no file": lambda listed: listed[0].update(file="other.gguf"),
    "twice": lambda listed: listed.append(listed[0]),
    "larger than is read": lambda listed: listed[0].update(size=chunks.MAX_BYTES + 1),
    "of no bytes": lambda listed: listed[0].update(size=0),
}


@pytest.mark.parametrize("case", NAMED)
def test_a_manifest_names_an_index_a_file(case: str, publisher: Publisher, tmp_path: Any) -> None:
    """An index of no file, a second one, or one larger than is read makes the manifest malformed."""
    release = publisher.release(
        tmp_path, mutate=lambda d: NAMED[case](d["predicate"]["variants"][1]["chunks"]) and None
    )
    with pytest.raises(TrustError) as caught:
        statement.parse(publisher.opener(release.bundles.manifest).payload)
    assert caught.value.refusal is Refusal.MALFORMED


def test_a_manifest_without_indexes_is_accepted(publisher: Publisher, tmp_path: Any) -> None:
    """Releases made before there were indexes stay as they are."""
    release = publisher.release(
        tmp_path, mutate=lambda d: [v.pop("chunks") for v in d["predicate"]["variants"]] and None
    )
    assert statement.parse(publisher.opener(release.bundles.manifest).payload).indexes() == {}


@pytest.fixture(scope="module")
def publisher() -> Publisher:
    return Publisher()
