"""An update fetches the chunks that changed and rebuilds the exact file; where it cannot, the whole file is fetched."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from pipeline.catalog.names import Channel
from pipeline.errors import RegistryError, TrustError
from pipeline.manifest import chunks
from pipeline.manifest.chunks import Chunk
from pipeline.manifest.encoding import canonical, sha256
from pipeline.manifest.rules import Accepted, Seen
from pipeline.registry import beneath, streams
from pipeline.registry.consume import fetch
from pipeline.registry.counted import Counted
from pipeline.registry.delta import GAP, Rebuilt, places, plan
from pipeline.registry.folder import FolderStore
from pipeline.registry.publish import publish
from pipeline.registry.pull import Pulled, pull
from pipeline.registry.store import silent
from pipeline.registry.verify import verify_folder
from tests.support.changed import WORDS, layers, model
from tests.support.releases import EDGE, LINE, NOW, SERVER, Publisher, flipped, replace_file
from tests.support.stores import Hooked, Stopping
from tests.unit.test_chunks import cut

BEFORE = model(layers(12), words=WORDS)
AFTER = model(layers(12, t3=103, t4=104, t9=109), words=WORDS)

names = st.sampled_from([f"t{number}" for number in range(6)])
models = st.builds(
    lambda tensors, said: model(tensors, said) if tensors else model({"t": (1, 1)}, said),
    st.dictionaries(names, st.tuples(st.integers(1, 80), st.integers(0, 2)), max_size=6),
    st.text("ab", max_size=50),
)


@given(st.lists(st.tuples(st.integers(1, 2 * GAP), st.booleans()), max_size=30))
def test_a_plan_covers_every_chunk_once(parts: list[tuple[int, bool]]) -> None:
    """In order; what is not there is fetched; what is there is fetched only between two ranges and if it is short."""
    wanted, offset = [], 0
    for number, (size, _) in enumerate(parts):
        wanted.append(Chunk(offset, size, str(number)))
        offset += size
    kept = {str(number) for number, (_, there) in enumerate(parts) if there}
    runs = plan(wanted, kept)
    assert [chunk for run in runs for chunk in run.chunks] == wanted
    assert all(one.fetched != other.fetched for one, other in pairwise(runs))
    for run in runs:
        missing = [chunk.sha256 not in kept for chunk in run.chunks]
        assert (missing[0] and missing[-1]) if run.fetched else not any(missing)


@settings(max_examples=40)
@given(models, models, st.floats(0, 1))
def test_any_file_is_rebuilt_from_any_other(tmp_path_factory: Any, old: bytes, new: bytes, at: float) -> None:
    """From any offset on; what was fetched and what was reused add up to all of it, or to a chunk more."""
    folder = tmp_path_factory.mktemp("pair")
    start = int(at * len(new))
    (folder / "old.gguf").write_bytes(old)
    (folder / "new.gguf").write_bytes(new)
    store, wanted = FolderStore(folder / "registry"), cut(new)
    store.put_blob(sha256(new), folder / "new.gguf", silent)
    registry = Counted(store)
    with beneath.root(folder) as versions:
        found = places(versions, ["old.gguf"], wanted)
        with Rebuilt(registry, sha256(new), wanted, found, versions).open(start) as f:
            assert streams.read(f, len(new) + 1) == new[start:]
    assert 0 <= registry.fetched + registry.reused - (len(new) - start) < chunks.MAX_CHUNK
    if start == 0 and old == new:
        assert registry.fetched == 0


class Consumer:
    """A registry of two releases, and a folder that has the first."""

    def __init__(self, folder: Path, old: bytes = BEFORE, new: bytes = AFTER) -> None:
        self.folder, self.publisher = folder, Publisher()
        self.into, self.store = folder / "into", FolderStore(folder / "registry")
        self.add(1, old)
        self.pull(1)
        self.add(2, new)

    def add(self, version: int, data: bytes, mutate: Any = None) -> None:
        files = {f"{EDGE}/model.gguf": data}
        release = self.publisher.release(self.folder / f"release-{version}", version, files=files, mutate=mutate)
        publish(
            self.store, release, channel=Channel.DEV, signer=self.publisher.sign, opener=self.publisher.opener, now=NOW
        )

    def accepted(self, version: int) -> Accepted:
        return fetch(self.store, opener=self.publisher.opener, line=LINE, seen=Seen(), now=NOW, version=version)

    def pull(self, version: int, store: Any = None, progress: Any = silent) -> Pulled:
        return pull(store or self.store, self.accepted(version), EDGE, self.into, progress)

    def blob(self, digest: str) -> Path:
        return self.folder / "registry/blobs/sha256" / digest

    @property
    def index(self) -> chunks.Index:
        return self.accepted(2).manifest.variant(EDGE).chunks[0]

    def check(self, data: bytes) -> None:
        """Check that the folder's active version holds exactly these bytes and verifies."""
        assert (self.into / "current/model.gguf").read_bytes() == data
        verify_folder(self.into / "current", opener=self.publisher.opener, line=LINE, seen=Seen(), now=NOW)


UPDATES: dict[str, tuple[bytes, bytes, float]] = {
    "three tensors": (BEFORE, AFTER, 3 * 40 * 1024),
    "what it says of itself": (BEFORE, model(layers(12), "another", WORDS), 0),
    "a tensor more": (BEFORE, model(layers(13), words=WORDS), 40 * 1024),
    "a tensor less": (BEFORE, model(layers(11), words=WORDS), 0),
    "all tensors": (BEFORE, model(layers(12, **{f"t{n}": 100 + n for n in range(12)}), words=WORDS), 12 * 40 * 1024),
    "tensors in another order": (
        BEFORE, model(dict(reversed(layers(12).items())), words=WORDS), 0,
    ),
    "the vocabulary": (BEFORE, model(layers(12), words=[f"{word}." for word in WORDS]), sum(9 + len(word) for word in WORDS)),
}  # fmt: skip


@pytest.mark.parametrize("case", UPDATES)
def test_an_update_moves_what_changed(case: str, tmp_path: Path) -> None:
    """The registry gives the changed chunks, the index and the small entries, and the file is exact."""
    old, new, changed = UPDATES[case]
    consumer = Consumer(tmp_path, old, new)
    done = consumer.pull(2)
    consumer.check(new)
    assert changed <= done.fetched <= changed + consumer.index.size + 4096
    assert done.whole == ()
    assert done.fetched + done.reused == len(new) + consumer.index.size


def test_neighbouring_chunks_come_in_one_range(tmp_path: Path) -> None:
    """Of three changed tensors two are neighbours: with the index these are three requests."""
    consumer = Consumer(tmp_path)
    hooked = Hooked(consumer.store)
    consumer.pull(2, hooked)
    assert len([call for call in hooked.calls if call.startswith("open_blob")]) == 3


def test_the_bar_says_what_is_moved(tmp_path: Path) -> None:
    """It ends at the release's bytes, and tells those fetched from those reused."""
    consumer, seen = Consumer(tmp_path), []
    consumer.pull(2, progress=lambda *report: seen.append(report))
    assert seen[-1][0] == seen[-1][1] == len(AFTER)
    assert seen[-1][2] == "model.gguf, 0.1 MB fetched, 0.4 MB reused"


def test_a_first_pull_reads_no_index(tmp_path: Path) -> None:
    """Where nothing is on the disk the file comes whole, in one request, and nothing is said of it."""
    consumer = Consumer(tmp_path)
    consumer.into = tmp_path / "elsewhere"
    hooked = Hooked(consumer.store)
    done = consumer.pull(2, hooked)
    assert hooked.calls == ["open_blob 0"]
    assert (done.fetched, done.reused, done.whole) == (len(AFTER), 0, ())


def test_a_release_without_an_index_comes_whole(tmp_path: Path) -> None:
    """Releases from before there were indexes are pulled as they always were."""
    consumer = Consumer(tmp_path)
    consumer.add(3, AFTER[:-1] + b"\7", mutate=lambda d: [v.pop("chunks") for v in d["predicate"]["variants"]] and None)
    done = consumer.pull(3)
    consumer.check(AFTER[:-1] + b"\7")
    assert (done.fetched, done.whole) == (len(AFTER), ())


def test_the_first_index_serves_a_release_without_one(tmp_path: Path) -> None:
    """What is on the disk is cut by its own bytes: the release it came with needs no index."""
    consumer = Consumer(tmp_path)
    consumer.into = tmp_path / "elsewhere"
    consumer.add(3, BEFORE, mutate=lambda d: [v.pop("chunks") for v in d["predicate"]["variants"]] and None)
    consumer.pull(3)
    assert consumer.pull(2).reused > 300_000
    consumer.check(AFTER)


def _misled(consumer: Consumer) -> None:
    """The signed index of release 3 gives a chunk another digest, one of the file on the disk among them."""
    old, new = cut(BEFORE), cut(AFTER)
    listed = [(c.size, c.sha256) for c in new[:-8]] + [(c.size, c.sha256) for c in old[-8:]]
    assert [size for size, _ in listed] == [c.size for c in new]
    data = canonical({"_type": chunks.CHUNKS_TYPE, "size": len(AFTER), "sha256": sha256(AFTER), "chunks": listed})
    (consumer.folder / "wrong").write_bytes(data)
    consumer.store.put_blob(sha256(data), consumer.folder / "wrong", silent)

    def mutate(document: dict[str, Any]) -> None:
        for variant in document["predicate"]["variants"]:
            for index in variant["chunks"]:
                if variant["name"] == EDGE:
                    index.update(size=len(data), sha256=sha256(data))

    consumer.add(3, AFTER, mutate)


WHOLE: dict[str, tuple[Callable[[Consumer], object], int, str]] = {
    "the index is gone": (lambda c: c.blob(c.index.sha256).unlink(), 2, "the registry lacks the file"),
    "the index was changed": (lambda c: _flip(c.blob(c.index.sha256)), 2, "is not the one that was signed"),
    "the index is cut short": (lambda c: _cut(c.blob(c.index.sha256)), 2, "is not the one that was signed"),
    "the signer's index is wrong": (_misled, 3, "model.gguf is not the file that was signed"),
}


def _flip(path: Path) -> None:
    replace_file(path, flipped(path.read_bytes()))


def _cut(path: Path) -> None:
    replace_file(path, path.read_bytes()[:-5])


@pytest.mark.parametrize("case", WHOLE)
def test_where_no_update_can_be_made_the_file_comes_whole(case: str, tmp_path: Path) -> None:
    """The reason is said, the file is exact, and the bar ends where it should."""
    damage, version, reason = WHOLE[case]
    consumer, seen = Consumer(tmp_path), []
    damage(consumer)
    done = consumer.pull(version, progress=lambda *report: seen.append(report))
    consumer.check(AFTER)
    assert [said.startswith("model.gguf was fetched whole: ") and reason in said for said in done.whole] == [True]
    assert done.fetched >= len(AFTER)
    assert seen[-1][:2] == (len(AFTER), len(AFTER))


ON_DISK: dict[str, Callable[[Path], object]] = {
    "a bit changed": _flip,
    "cut short": _cut,
    "no model": lambda path: replace_file(path, b"no model at all"),
    "gone": Path.unlink,
    "a link": lambda path: (path.unlink(), path.symlink_to("/etc/hostname")),
}


@pytest.mark.parametrize("case", ON_DISK)
def test_what_is_on_the_disk_is_not_believed(case: str, tmp_path: Path) -> None:
    """A damaged file gives what is right of it, and the rest is fetched."""
    consumer = Consumer(tmp_path)
    ON_DISK[case](consumer.into / "versions/1/model.gguf")
    consumer.pull(2)
    consumer.check(AFTER)


def test_a_chunk_that_changes_after_it_was_found_is_fetched(tmp_path: Path) -> None:
    """The disk may fail between the look and the copy."""
    consumer, wanted, registry = Consumer(tmp_path), cut(AFTER), None
    with beneath.root(consumer.into / "versions") as versions:
        found = places(versions, ["1/model.gguf"], wanted)
        _flip(consumer.into / "versions/1/model.gguf")
        registry = Counted(consumer.store)
        with Rebuilt(registry, sha256(AFTER), wanted, found, versions).open(0) as f:
            assert streams.read(f, len(AFTER) + 1) == AFTER
    assert registry.fetched == 4 * 40 * 1024


@pytest.mark.parametrize("count", [1, 1000, 80_000])
def test_an_update_goes_on_where_it_was_interrupted(count: int, tmp_path: Path) -> None:
    """What came before the registry went away is kept, and at most one chunk comes twice."""
    consumer = Consumer(tmp_path)

    def stop() -> None:
        raise RegistryError("gone", hint="wait")

    def cutting(f: Any) -> Any:
        return Stopping(f, count, stop)

    hooked = Hooked(consumer.store)
    hooked.before = lambda call: setattr(hooked, "stream", cutting if len(hooked.calls) > 1 else hooked.stream)
    with pytest.raises(RegistryError, match="gone"):
        consumer.pull(2, hooked)
    again = consumer.pull(2)
    consumer.check(AFTER)
    assert again.whole == ()
    assert again.fetched <= 3 * 40 * 1024 + consumer.index.size


def test_shards_are_rebuilt_too(tmp_path: Path) -> None:
    """A rank's safetensors file moves the tensors that changed; what moved within the file is found all the same."""
    publisher, store = Publisher(), FolderStore(tmp_path / "registry")
    name = "rank-0/model.safetensors"
    for version, seeds in ((1, {"a": 1, "b": 2, "c": 3}), (2, {"a": 1, "aa": 4, "b": 2, "c": 5})):
        tensors = {key: np.random.default_rng(seed).random((100, 256), np.float32) for key, seed in seeds.items()}
        shard = save(tensors)
        release = publisher.release(tmp_path / str(version), version, files={f"{SERVER}/{name}": shard})
        publish(store, release, channel=Channel.DEV, signer=publisher.sign, opener=publisher.opener, now=NOW)
        accepted = fetch(store, opener=publisher.opener, line=LINE, seen=Seen(), now=NOW, version=version)
        done = pull(store, accepted, SERVER, tmp_path / "into")
    assert (tmp_path / "into/current" / name).read_bytes() == shard
    assert 2 * 102_400 < done.fetched < 2 * 102_400 + 2048
    assert 2 * 102_400 <= done.reused < 2 * 102_400 + 2048


LIES: dict[str, Callable[[bytes], bytes]] = {
    "a bit changed": flipped,
    "cut short": lambda data: data[:-1],
    "nothing": lambda data: b"",
    "too much": lambda data: data + b"more",
}


@pytest.mark.parametrize("case", LIES)
def test_a_registry_that_lies_about_ranges_gains_nothing(case: str, tmp_path: Path) -> None:
    """What a range gives is held to the signed digests; the whole file comes in its place, or more is not read."""
    consumer = Consumer(tmp_path)
    hooked = Hooked(consumer.store)

    def before(call: str) -> None:
        name, offset, *length = call.split()
        lies = name == "open_blob" and length and offset != "0"
        hooked.stream = (lambda f: io.BytesIO(LIES[case](streams.read(f, 1 << 30)))) if lies else (lambda f: f)

    hooked.before = before
    done = consumer.pull(2, hooked)
    consumer.check(AFTER)
    assert [case == "too much"] == [not done.whole]


def test_publishing_refuses_an_index_that_is_not_the_files(tmp_path: Path) -> None:
    """A signed index that does not follow from the file's bytes does not get into the registry."""
    consumer = Consumer(tmp_path)

    def mutate(document: dict[str, Any]) -> None:
        document["predicate"]["variants"][0]["chunks"][0]["sha256"] = "0" * 64

    with pytest.raises(TrustError, match="is not the one that was signed"):
        consumer.add(3, AFTER[:-1] + b"\7", mutate)
    assert not consumer.blob("0" * 64).exists()
