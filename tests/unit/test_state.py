"""What was seen is remembered whole, privately, and only ever moves forward."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.catalog.names import Channel
from pipeline.errors import Refusal, StageError, TrustError
from pipeline.manifest import dsse, statement
from pipeline.manifest.pointer import PointerPredicate
from pipeline.manifest.rules import BY_VERSION, Accepted, Bundles, Last, Seen
from pipeline.manifest.statement import Manifest
from pipeline.registry import state
from tests.support.releases import Publisher


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "demo.json"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    bundles = Publisher().release(tmp_path_factory.mktemp("release")).bundles
    return statement.parse(dsse.unverified_payload(bundles.manifest))


def _hex(number: int) -> str:
    return f"{number:064x}"


def _last(version: int) -> Last:
    return Last(version, _hex(version))


def _seen(version: int, serial: int = 0, time: float = 0.0, channel: str = "dev") -> Seen:
    """Return a memory of one release: on a channel where there is a serial, else by version."""
    moves = {channel: serial} if serial else {}
    pointers = {c: _hex(s) for c, s in moves.items()}
    return Seen({channel if serial else BY_VERSION: _last(version)}, moves, pointers, time)


def _accepted(manifest: Manifest, seen: Seen, slot: str | None = None, *, rollback: bool = False) -> Accepted:
    """Return an accepted release that leads to this memory; `slot` says which of its releases, by default the only."""
    slot = slot or next(iter(seen.releases))
    last = seen.releases[slot]
    bundles = Bundles(b"", b"", {})
    if slot == BY_VERSION:
        return Accepted(manifest, last.digest, seen, bundles)
    pointer = PointerPredicate(
        line="demo",
        channel=Channel(slot),
        serial=seen.serials[slot],
        version=last.version,
        tag="v",
        manifest_sha256=last.digest,
    )
    return Accepted(manifest, last.digest, seen, bundles, pointer, rolled_back=rollback)


def test_nothing_is_remembered_at_first(path: Path) -> None:
    """Without a file nothing was seen."""
    assert state.load(path) == Seen()


def test_what_was_seen_is_kept_privately(path: Path, manifest: Manifest) -> None:
    """It comes back as it was; only the owner can read it."""
    seen = _seen(3, 7, 12.5)
    assert state.remember(path, _accepted(manifest, seen)) == seen
    assert state.load(path) == seen
    assert path.stat().st_mode & 0o777 == 0o600


FORWARD = {
    "newer": (_seen(1, 1, 1.0), _seen(2, 2, 2.0), False, _seen(2, 2, 2.0)),
    "the same again": (_seen(2, 2, 2.0), _seen(2, 2, 3.0), False, _seen(2, 2, 3.0)),
    "overtaken by another process": (_seen(3, 3, 3.0), _seen(2, 2, 2.0), False, _seen(3, 3, 3.0)),
    "signed rollback": (_seen(2, 2, 2.0), _seen(1, 3, 3.0), True, _seen(1, 3, 3.0)),
    "signed rollback, overtaken": (_seen(4, 4, 4.0), _seen(1, 3, 3.0), True, _seen(4, 4, 4.0)),
    "clock ran back": (_seen(1, 1, 9.0), _seen(2, 2, 2.0), False, _seen(2, 2, 9.0)),
}


@pytest.mark.parametrize("case", FORWARD)
def test_memory_moves_forward(case: str, path: Path, manifest: Manifest) -> None:
    """Whatever order two processes finish in, version, serial and clock never fall; a signed rollback may."""
    before, seen, rollback, after = FORWARD[case]
    state.remember(path, _accepted(manifest, before))
    assert state.remember(path, _accepted(manifest, seen, rollback=rollback)) == after
    assert state.load(path) == after


def test_channels_are_remembered_apart(path: Path, manifest: Manifest) -> None:
    """One who follows dev at release 2 and stable at 1, and asked for 1 by version, remembers each."""
    for seen in (_seen(2, 5, 1.0), _seen(1, 3, 2.0, channel="stable"), _seen(1)):
        found = state.remember(path, _accepted(manifest, seen))
    pointers = {"dev": _hex(5), "stable": _hex(3)}
    releases = {"dev": _last(2), "stable": _last(1), BY_VERSION: _last(1)}
    assert state.load(path) == found == Seen(releases, {"dev": 5, "stable": 3}, pointers, 2.0)


def test_a_rollback_the_user_named_is_remembered(path: Path, manifest: Manifest) -> None:
    """The user's own word moves the version back where it was said, but no channel's serial."""
    state.remember(path, _accepted(manifest, _seen(3, 3)))
    state.remember(path, _accepted(manifest, _seen(2)))
    found = state.remember(path, _accepted(manifest, _seen(1)), allow_rollback=True)
    assert found == Seen({"dev": _last(3), BY_VERSION: _last(1)}, {"dev": 3}, {"dev": _hex(3)})
    found = state.remember(path, _accepted(manifest, _seen(1, 2)), allow_rollback=True)
    assert found == Seen({"dev": _last(1), BY_VERSION: _last(1)}, {"dev": 3}, {"dev": _hex(3)})


TWO_FACED = {
    "version": (_seen(2), Seen({BY_VERSION: Last(2, _hex(9))})),
    "version on another channel": (_seen(2, 5), Seen({"stable": Last(2, _hex(9))}, {"stable": 1}, {"stable": _hex(1)})),
    "version on a channel and by itself": (_seen(2, 5), Seen({BY_VERSION: Last(2, _hex(9))})),
    "serial": (_seen(2, 5), Seen({"dev": _last(3)}, {"dev": 5}, {"dev": _hex(9)})),
}


@pytest.mark.parametrize("case", TWO_FACED)
def test_two_contents_under_one_number_are_refused(case: str, path: Path, manifest: Manifest) -> None:
    """If another process saw something else under the same number meanwhile, the registry is two-faced."""
    before, seen = TWO_FACED[case]
    state.remember(path, _accepted(manifest, before))
    with pytest.raises(TrustError) as caught:
        state.remember(path, _accepted(manifest, seen))
    assert caught.value.refusal is Refusal.EQUIVOCATION
    assert state.load(path) == before


SLOTS = [*Channel, BY_VERSION]
VERSIONS = st.integers(1, 2**62)
MOVES = st.dictionaries(st.sampled_from(list(Channel)).map(str), st.integers(1, 2**62))
CLOCK = st.floats(0, 1e12)


@settings(max_examples=50)
@given(
    versions=st.dictionaries(st.sampled_from(SLOTS).map(str), VERSIONS, min_size=1),
    moves=MOVES,
    clock=CLOCK,
    data=st.data(),
)
def test_any_memory_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    manifest: Manifest,
    versions: dict[str, int],
    moves: dict[str, int],
    clock: float,
    data: st.DataObject,
) -> None:
    """Whatever is remembered of whichever channels is read back without a change."""
    path = tmp_path_factory.mktemp("state") / "demo.json"
    slot = data.draw(st.sampled_from(sorted(versions)))
    serials = moves if slot == BY_VERSION else {slot: 1, **moves}
    seen = Seen({s: _last(v) for s, v in versions.items()}, serials, {c: _hex(n) for c, n in serials.items()}, clock)
    assert state.remember(path, _accepted(manifest, seen, slot)) == state.load(path) == seen


@settings(max_examples=50)
@given(version=VERSIONS, moves=MOVES, clock=CLOCK)
def test_a_file_of_schema_1_is_read(
    tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, version: int, moves: dict[str, int], clock: float
) -> None:
    """Its one version counts for every channel it knows and by version; it is written anew with all of that."""
    path = tmp_path_factory.mktemp("state") / "demo.json"
    pointers = {c: _hex(n) for c, n in moves.items()}
    old = {"schema_version": 1, "version": version, "digest": _hex(version), "serials": moves, "pointers": pointers}
    path.write_text(json.dumps({**old, "time": clock}))
    seen = state.load(path)
    assert seen == Seen({slot: _last(version) for slot in [*moves, BY_VERSION]}, moves, pointers, clock)
    assert state.remember(path, _accepted(manifest, seen, BY_VERSION)) == seen
    assert json.loads(path.read_bytes())["schema_version"] == 2
    assert state.load(path) == seen


@settings(max_examples=50)
@given(steps=st.lists(st.tuples(st.sampled_from(SLOTS).map(str), st.integers(1, 9)), max_size=8))
def test_no_channel_falls(
    tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, steps: list[tuple[str, int]]
) -> None:
    """Whatever is accepted meanwhile on other channels, each one's highest version is what is remembered."""
    path = tmp_path_factory.mktemp("state") / "demo.json"
    for slot, version in steps:
        state.remember(path, _accepted(manifest, _seen(version, 0 if slot == BY_VERSION else 1, channel=slot)))
    highest = {slot: max(v for s, v in steps if s == slot) for slot, _ in steps}
    assert state.load(path).releases == {slot: _last(version) for slot, version in highest.items()}


RELEASE = {"version": 1, "digest": _hex(1)}
GOOD = {"schema_version": 2, "releases": {"dev": RELEASE}, "serials": {}, "pointers": {}, "time": 0.0}
OLD = {"schema_version": 1, **RELEASE, "serials": {}, "pointers": {}, "time": 0.0}
GARBAGE = {
    "empty": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "nested deeply": b"[" * 100_000,
    "a key missing": json.dumps({k: v for k, v in GOOD.items() if k != "releases"}).encode(),
    "a negative version": json.dumps({**GOOD, "releases": {"dev": {**RELEASE, "version": -1}}}).encode(),
    "a digest that is none": json.dumps({**GOOD, "releases": {"dev": {**RELEASE, "digest": "x"}}}).encode(),
    "a serial without pointer": json.dumps({**GOOD, "serials": {"dev": 3}}).encode(),
    "schema 1, a key missing": json.dumps({k: v for k, v in OLD.items() if k != "version"}).encode(),
    "schema 1, a negative version": json.dumps({**OLD, "version": -1}).encode(),
    "schema 1, a digest that is none": json.dumps({**OLD, "digest": ""}).encode(),
    "schema 1, a serial without pointer": json.dumps({**OLD, "serials": {"dev": 3}}).encode(),
    "schema 1 under the name of 2": json.dumps({**OLD, "schema_version": 2}).encode(),
    "no schema": json.dumps({k: v for k, v in GOOD.items() if k != "schema_version"}).encode(),
    "a later schema": json.dumps({**GOOD, "schema_version": 3}).encode(),
    "too large": b" " * (state.MAX_STATE + 1),
}


def test_what_garbage_is_made_of_is_read(path: Path) -> None:
    """The two files that the cases below differ from in one way are good ones."""
    path.parent.mkdir()
    for good, slot in ((GOOD, "dev"), (OLD, BY_VERSION)):
        path.write_text(json.dumps(good))
        assert state.load(path) == Seen({slot: _last(1)})


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_is_never_taken_for_nothing(case: str, path: Path, manifest: Manifest) -> None:
    """A damaged memory is an error for reading and for writing, and stays as it is."""
    path.parent.mkdir()
    path.write_bytes(GARBAGE[case])
    for call in (lambda: state.load(path), lambda: state.remember(path, _accepted(manifest, _seen(1)))):
        with pytest.raises(TrustError) as caught:
            call()
        assert caught.value.refusal is Refusal.MALFORMED
        assert str(path) in caught.value.hint
    assert path.read_bytes() == GARBAGE[case]


def test_a_place_that_cannot_be_used_is_explained(tmp_path: Path, manifest: Manifest) -> None:
    """A file in the folder's place ends in one error with a hint."""
    (tmp_path / "file").touch()
    for call in (
        lambda: state.load(tmp_path / "file" / "demo.json"),
        lambda: state.remember(tmp_path / "file" / "demo.json", _accepted(manifest, _seen(1))),
    ):
        with pytest.raises(StageError) as caught:
            call()
        assert "XDG_STATE_HOME" in caught.value.hint


def _many(path: Path, manifest: bytes, versions: range) -> None:
    parsed = statement.parse(manifest)
    for version in versions:
        state.remember(path, _accepted(parsed, _seen(version, version)))


def test_processes_at_once_lose_nothing(path: Path, manifest: Manifest) -> None:
    """Four processes that remember at once leave the highest number, whole."""
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_many, args=(path, manifest.encode(), range(1 + first, 60, 4))) for first in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert state.load(path) == _seen(59, 59)


def _locked_while_renaming(path: Path, manifest: Manifest) -> int:
    """Remember in a child process that looks, right before the file is replaced, whether the lock is held."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 2

    def hook(event: str, _: tuple[object, ...]) -> None:
        nonlocal status
        if event == "os.rename":
            with Path(f"{path}.lock").open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    status = 1
                except BlockingIOError:
                    status = 0

    try:
        sys.addaudithook(hook)
        state.remember(path, _accepted(manifest, _seen(1)))
    finally:
        os._exit(status)


def test_remembering_holds_the_lock(path: Path, manifest: Manifest) -> None:
    """From reading to replacing nobody else can get in between."""
    assert _locked_while_renaming(path, manifest) == 0


def test_the_default_place_is_the_users(tmp_path: Path) -> None:
    """`XDG_STATE_HOME` decides, else ~/.local/state; a relative one is ignored as its specification asks."""
    assert state.default_path("demo", {"XDG_STATE_HOME": "/s"}) == Path("/s/edge-release/demo.json")
    for environ in ({}, {"XDG_STATE_HOME": "relative"}):
        assert state.default_path("demo", environ) == Path.home() / ".local/state/edge-release/demo.json"
    with pytest.raises(TrustError):
        state.default_path("../demo", {})
