"""A node's releases on its disk: killed at every step, the disk leads to a whole release that may be used."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.catalog.names import Channel
from pipeline.errors import ConflictError, PipelineError, Refusal, TrustError
from pipeline.registry import channels, state
from pipeline.registry.consume import fetch
from pipeline.registry.folder import FolderStore
from pipeline.registry.publish import publish
from pipeline.serving.node.releases import ChannelReleases, Held, Wanted
from pipeline.serving.node.state import Pin
from tests.support.changed import WORDS, layers, model
from tests.support.killed import killed_before_change
from tests.support.releases import EDGE, LINE, NOW, Publisher, flipped, listing, replace_file

DEV = Channel.DEV


@pytest.fixture(scope="module")
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def releases(publisher: Publisher, tmp_path: Path) -> ChannelReleases:
    """A node of a registry whose channel points to release 1, which it keeps."""
    found = ChannelReleases(
        FolderStore(tmp_path / "registry"), publisher.opener, LINE, DEV, EDGE, tmp_path / "home", tmp_path / "seen.json",
        clock=lambda: NOW,
    )  # fmt: skip
    put(found, publisher, 1)
    found.keep(found.newest())
    return found


def put(
    releases: ChannelReleases, publisher: Publisher, version: int, model_files: dict[str, bytes] | None = None
) -> None:
    folder = releases.home.parent / f"release-{version}"
    files = {"runtime-arm64/llama-server": b"#!/bin/true %d" % version, **(model_files or {})}
    signed = publisher.release(folder, version, files=files)
    publish(releases.store, signed, channel=DEV, signer=publisher.sign, opener=publisher.opener, now=NOW)


def back(releases: ChannelReleases, publisher: Publisher) -> None:
    channels.rollback(
        releases.store, line=LINE, channel=DEV, signer=publisher.sign, opener=publisher.opener, now=NOW
    )  # fmt: skip


def fresh(releases: ChannelReleases) -> ChannelReleases:
    """The same node after a loss of power."""
    return replace(releases)


def version(held: Held | None) -> int | None:
    return held.pin.version if held else None


def offline(releases: ChannelReleases) -> ChannelReleases:
    return replace(releases, store=FolderStore(releases.home / "no registry"))


def test_a_release_is_whole_and_found_again(releases: ChannelReleases) -> None:
    """What was kept is found again without a registry: model, programs, golden prompts, its digests."""
    held = offline(releases).kept()
    assert held is not None
    assert (held.entry.name, held.pin.version) == (EDGE, 1)
    assert held.weights.read_bytes()[:4] == b"GGUF"
    assert held.server.stat().st_mode & 0o111
    assert state.load(releases.seen).releases[DEV].version == 1


def test_a_new_release_changes_nothing_until_it_is_kept(releases: ChannelReleases, publisher: Publisher) -> None:
    """Bringing a release leaves the links and what is remembered as they are; keeping it moves both."""
    put(releases, publisher, 2)
    held = releases.newest()
    assert version(releases.kept()) == 1
    assert state.load(releases.seen).releases[DEV].version == 1
    assert releases.again(held) == held
    releases.keep(held)
    assert version(fresh(releases).kept()) == 2
    assert state.load(releases.seen).releases[DEV].version == 2


def test_an_update_fetches_what_changed(publisher: Publisher, tmp_path: Path) -> None:
    """From one release to the next the node rebuilds the model from the one it serves, and says what it moved."""
    said: list[str] = []
    node = ChannelReleases(
        FolderStore(tmp_path / "registry"), publisher.opener, LINE, DEV, EDGE, tmp_path / "home", tmp_path / "seen.json",
        clock=lambda: NOW, say=said.append,
    )  # fmt: skip
    models = [model(layers(50), words=WORDS), model(layers(50, t9=109), words=WORDS)]
    for number, data in enumerate(models, 1):
        put(node, publisher, number, {f"{EDGE}/model.gguf": data})
        node.keep(node.newest())
    brought, held = node.newest(), offline(fresh(node)).kept()
    assert held is not None
    assert held.weights.read_bytes() == models[1]
    assert brought.fetched < 50_000 < brought.reused
    assert (held.fetched, held.reused) == (0, 0)
    assert [line for line in said if EDGE in line] == [
        f"brought {EDGE} of release 1: 2.12 MB fetched, 0.00 MB were there",
        f"brought {EDGE} of release 2: 0.05 MB fetched, 2.08 MB were there",
    ]


def test_bad_releases_do_not_push_the_good_one_out(releases: ChannelReleases, publisher: Publisher) -> None:
    """However many releases are brought and not kept, the kept one stays and the disk does not fill."""
    for number in (2, 3, 4):
        put(releases, publisher, number)
        releases.newest()
        assert listing(releases.home / "model/versions") == ["1", str(number)]
    assert version(fresh(releases).kept()) == 1


def _sweep(prepare: Callable[[], None], run: Callable[[], object], check: Callable[[], None]) -> int:
    for number in itertools.count(1):
        prepare()
        if not killed_before_change(number, run):
            return number - 1
        check()
    raise AssertionError


@pytest.mark.parametrize("direction", ["forward", "back"])
def test_killed_before_any_change(releases: ChannelReleases, publisher: Publisher, direction: str) -> None:
    """Wherever an update is killed, the disk leads to a whole release without a registry, and the update finishes."""
    put(releases, publisher, 2)
    if direction == "back":
        releases.keep(releases.newest())
        back(releases, publisher)
    wanted = 2 if direction == "forward" else 1
    saved = releases.home.parent / "saved"
    saved.mkdir()
    shutil.copytree(releases.home, saved / "home", symlinks=True)
    shutil.copy(releases.seen, saved / "seen.json")

    def prepare() -> None:
        shutil.rmtree(releases.home)
        shutil.copytree(saved / "home", releases.home, symlinks=True)
        shutil.copy(saved / "seen.json", releases.seen)

    def update() -> None:
        node = fresh(releases)
        node.keep(node.newest())

    def check() -> None:
        assert version(offline(releases).kept()) in {1, 2}
        update()
        assert version(offline(releases).kept()) == wanted

    assert _sweep(prepare, update, check) > 10


def test_a_changed_file_is_told_of_and_mended(releases: ChannelReleases) -> None:
    """A file that changed on the disk is refused before a start, and fetched again at the next look."""
    held = releases.newest()
    replace_file(held.weights, flipped(held.weights.read_bytes()))
    with pytest.raises(TrustError, match="not the file that was signed"):
        releases.again(held)
    with pytest.raises(TrustError):
        fresh(releases).kept()
    assert releases.again(releases.newest()).pin == held.pin


def test_programs_of_another_release_are_refused(releases: ChannelReleases, publisher: Publisher) -> None:
    """Model and programs are of one release."""
    put(releases, publisher, 2)
    releases.keep(releases.newest())
    runtime = releases.home / "runtime/versions"
    shutil.rmtree(runtime / "2")
    shutil.copytree(runtime / "1", runtime / "2")
    with pytest.raises(TrustError) as caught:
        fresh(releases).kept()
    assert caught.value.refusal in {Refusal.MIXED, Refusal.ROLLBACK}


def test_an_expired_disk_copy_is_refused(releases: ChannelReleases) -> None:
    """A release past its time is not started from the disk either."""
    with pytest.raises(TrustError, match="expired"):
        replace(releases, clock=lambda: NOW + timedelta(days=31)).kept()


def test_evidence_may_be_required(releases: ChannelReleases) -> None:
    """What the user requires is asked of the registry's release and of the disk's."""

    def refuse(_: object) -> None:
        raise TrustError(Refusal.UNPROVEN, "not proven on a Pi 5")

    strict = replace(releases, proof=refuse)
    for look in (strict.newest, strict.kept):
        with pytest.raises(TrustError, match="not proven"):
            look()


def test_errors_are_the_users(releases: ChannelReleases, publisher: Publisher) -> None:
    """A channel without a release, a variant a release lacks, a folder in use: each says what it is."""
    with pytest.raises(PipelineError, match="no channel"):
        offline(releases).newest()
    with pytest.raises(PipelineError, match="has no tiny-edge-riscv64"):
        replace(releases, variant="tiny-edge-riscv64").newest()
    assert offline(replace(releases, home=releases.home / "empty")).kept() is None
    accepted = fetch(
        releases.store, opener=publisher.opener, line=LINE, seen=state.load(releases.seen), now=NOW, channel=DEV
    )  # fmt: skip
    assert Pin(1, accepted.digest) == releases.newest().pin
    assert issubclass(ConflictError, PipelineError)


def pinned(releases: ChannelReleases, version: int, digest: str | None) -> ChannelReleases:
    """The same node, told to serve one release."""
    return replace(releases, wanted=Wanted(version, digest))


def test_a_pinned_release_is_served_whatever_the_channel_says(releases: ChannelReleases, publisher: Publisher) -> None:
    """By its digest a node goes back to an older release than it has seen, and forward again."""
    first = releases.newest().accepted.digest
    put(releases, publisher, 2)
    second = releases.newest()
    releases.keep(second)
    for number, digest in ((1, first), (2, second.accepted.digest), (1, first)):
        node = pinned(releases, number, digest)
        node.keep(node.newest())
        assert version(fresh(offline(node)).kept()) == number


def test_what_is_not_pinned_is_not_served(releases: ChannelReleases, publisher: Publisher) -> None:
    """Another manifest of that version is refused, and what the disk still leads to is no stand-in."""
    other = "0" * 64
    put(releases, publisher, 2)
    with pytest.raises(TrustError) as caught:
        pinned(releases, 2, other).newest()
    assert caught.value.refusal is Refusal.SWAPPED
    assert pinned(releases, 2, other).kept() is None
    with pytest.raises(TrustError):
        pinned(releases, 1, other).kept()


def test_a_version_alone_may_not_be_older(releases: ChannelReleases, publisher: Publisher) -> None:
    """Without its manifest's digest a release by its version keeps to the rule against rollbacks."""
    put(releases, publisher, 2)
    node = pinned(releases, 2, None)
    node.keep(node.newest())
    put(releases, publisher, 3)
    node = pinned(releases, 3, None)
    node.keep(node.newest())
    with pytest.raises(TrustError) as caught:
        pinned(releases, 2, None).newest()
    assert caught.value.refusal is Refusal.ROLLBACK
