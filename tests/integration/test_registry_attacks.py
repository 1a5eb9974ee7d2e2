"""Attacks on a real published registry and on what was pulled from it: each has its own refusal and changes nothing.

Every case begins from a registry with releases 1 and 2, pulled and remembered at 1 by a consumer who then asks for
what the channel points to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalog.names import Channel
from pipeline.errors import Refusal, TrustError
from pipeline.manifest import dsse, pointer, statement
from pipeline.manifest.encoding import canonical, sha256
from pipeline.manifest.pointer import PointerPredicate
from pipeline.manifest.rules import Accepted, Seen
from pipeline.registry import channels, indexes, layout, record, state
from pipeline.registry.consume import fetch
from pipeline.registry.folder import FolderStore
from pipeline.registry.publish import SignedRelease, publish
from pipeline.registry.pull import pull
from pipeline.registry.verify import verify_folder, verify_release
from tests.support.releases import (
    EDGE,
    LINE,
    NOW,
    Publisher,
    flipped,
    hostile_gguf,
    replace_file,
    tree,
)

DEV, STABLE = Channel.DEV, Channel.STABLE


@dataclass
class Scene:
    """A registry, its rightful publisher, and a consumer's machine."""

    publisher: Publisher
    folder: Path
    now: Any = NOW

    @property
    def root(self) -> Path:
        return self.folder / "registry"

    @property
    def store(self) -> FolderStore:
        return FolderStore(self.root)

    @property
    def into(self) -> Path:
        return self.folder / "into"

    @property
    def memory(self) -> Path:
        return self.folder / "state.json"

    def publish(self, version: int, **options: Any) -> SignedRelease:
        release = self.publisher.release(self.folder / f"release-{version}", version, **options)
        signer, opener = self.publisher.sign, self.publisher.opener
        publish(self.store, release, channel=DEV, signer=signer, opener=opener, now=NOW)
        return release

    def update(self, variant: str = EDGE, **how: Any) -> Accepted:
        """Do what a consumer does: fetch, verify everything, pull, remember."""
        accepted = fetch(
            self.store,
            opener=self.publisher.opener,
            line=LINE,
            seen=state.load(self.memory),
            now=self.now,
            **(how or {"channel": DEV}),
        )
        verify_release(self.store, accepted)
        pull(self.store, accepted, variant, self.into)
        state.remember(self.memory, accepted)
        return accepted

    def pull_only(self, **how: Any) -> None:
        """Do what a hasty consumer does: fetch and pull."""
        seen, opener = state.load(self.memory), self.publisher.opener
        accepted = fetch(self.store, opener=opener, line=LINE, seen=seen, now=self.now, **(how or {"channel": DEV}))
        pull(self.store, accepted, EDGE, self.into)

    def verify_only(self, **how: Any) -> None:
        """Do what an auditor does: fetch and verify where it lies."""
        seen, opener = state.load(self.memory), self.publisher.opener
        accepted = fetch(self.store, opener=opener, line=LINE, seen=seen, now=self.now, **(how or {"channel": DEV}))
        verify_release(self.store, accepted)

    def verify_pulled(self, **options: Any) -> Accepted:
        """Verify what is active."""
        return verify_folder(
            self.into / "current",
            opener=self.publisher.opener,
            line=LINE,
            seen=state.load(self.memory),
            now=self.now,
            variant=EDGE,
            **options,
        )

    def fetched(self, version: int) -> Accepted:
        return fetch(self.store, opener=self.publisher.opener, line=LINE, seen=Seen(), now=NOW, version=version)

    def promote(self, version: int) -> None:
        """Point stable to a release."""
        accepted, signer, opener = self.fetched(version), self.publisher.sign, self.publisher.opener
        channels.promote(self.store, accepted, channel=STABLE, signer=signer, opener=opener)

    def record(self, version: int) -> Path:
        return self.root / layout.release(LINE, version)

    def pointer(self, serial: int, channel: Channel = DEV) -> Path:
        return self.root / layout.pointer(LINE, channel, serial)

    def blob(self, version: int) -> Path:
        return self.root / layout.blob(self.fetched(version).manifest.variant(EDGE).files[0].sha256)

    def plant(self, release: SignedRelease, version: int) -> None:
        """Put a release into the registry by hand, as one who can write there would."""
        for path in release.files.values():
            blob = self.root / layout.blob(sha256(path.read_bytes()))
            if not blob.exists():
                blob.write_bytes(path.read_bytes())
        with suppress(TrustError):  # what is no manifest names no index
            manifest = statement.parse(dsse.unverified_payload(release.bundles.manifest))
            for name, (file, index) in manifest.indexes().items():
                indexes.put(self.store, index, file, release.files[name])
        self.record(version).unlink(missing_ok=True)
        self.record(version).write_bytes(record.encode(release.bundles))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(Publisher(), tmp_path)
    scene.publish(1)
    scene.update()
    scene.publish(2)
    return scene


def _edit_record(scene: Scene, version: int, edit: Callable[[dict[str, Any]], object]) -> None:
    path = scene.record(version)
    document = json.loads(path.read_bytes())
    edit(document)
    replace_file(path, canonical(document))


def _other_record(scene: Scene, version: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(scene.record(version).read_bytes())
    return found


def _point(
    scene: Scene, publisher: Publisher, version: int, digest: str, serial: int = 3, channel: Channel = DEV
) -> None:
    predicate = PointerPredicate(
        line=LINE,
        channel=channel,
        serial=serial,
        version=version,
        tag=f"v{version}",
        manifest_sha256=digest,
        previous=2,
    )
    scene.pointer(serial, channel).write_bytes(publisher.sign(pointer.build(predicate).encode()))


def _wrong_key(scene: Scene) -> None:
    stranger = Publisher()
    release = stranger.release(scene.folder / "strange", 2)
    scene.plant(release, 2)


def _traversal(scene: Scene) -> None:
    def up(document: dict[str, Any]) -> None:
        entry = next(v for v in document["predicate"]["variants"] if v["name"] == EDGE)
        entry["files"][0]["name"] = "../../../evil.gguf"
        for subject in document["subject"]:
            if subject["name"] == f"{EDGE}/model.gguf":
                subject["name"] = f"{EDGE}/../../../evil.gguf"

    scene.plant(scene.publisher.release(scene.folder / "up", 2, mutate=up), 2)


def _hostile(scene: Scene) -> None:
    scene.publish(3, files={f"{EDGE}/model.gguf": hostile_gguf()})


def _roll_back(scene: Scene) -> None:
    scene.update()
    scene.pointer(2).unlink()


def _replay(scene: Scene) -> None:
    scene.update()
    replace_file(scene.pointer(2), scene.pointer(1).read_bytes())


def _two_pointers(scene: Scene) -> None:
    scene.update()
    accepted = scene.update()
    scene.pointer(2).unlink()
    _point(scene, scene.publisher, 2, accepted.digest, serial=2)


def _expire(scene: Scene) -> None:
    scene.now = NOW + timedelta(days=31)


def _freeze_clock(scene: Scene) -> None:
    scene.now = NOW + timedelta(days=29)
    scene.update()
    scene.now = NOW - timedelta(days=9000)
    scene.publish(3, valid_days=20)


def _linked_blob(scene: Scene) -> None:
    blob = scene.blob(2)
    blob.rename(scene.folder / "elsewhere")
    blob.symlink_to(scene.folder / "elsewhere")


def _linked_record(scene: Scene) -> None:
    scene.record(2).rename(scene.folder / "elsewhere")
    scene.record(2).symlink_to(scene.folder / "elsewhere")


ON_THE_REGISTRY: dict[str, tuple[Refusal, Callable[[Scene], object]]] = {
    "unsigned: manifest removed": (Refusal.UNSIGNED, lambda s: _edit_record(s, 2, lambda d: d.pop("manifest"))),
    "unsigned: manifest empty": (Refusal.UNSIGNED, lambda s: _edit_record(s, 2, lambda d: d.update(manifest={}))),
    "unsigned: provenance removed": (Refusal.UNSIGNED, lambda s: _edit_record(s, 2, lambda d: d.pop("provenance"))),
    "unsigned: pointer empty": (Refusal.UNSIGNED, lambda s: replace_file(s.pointer(2), b"")),
    "wrong key: release": (Refusal.WRONG_SIGNER, _wrong_key),
    "wrong key: pointer": (Refusal.WRONG_SIGNER, lambda s: _point(s, Publisher(), 1, "0" * 64)),
    "tampered: blob": (Refusal.TAMPERED, lambda s: replace_file(s.blob(2), flipped(s.blob(2).read_bytes()))),
    "tampered: blob cut": (Refusal.TAMPERED, lambda s: replace_file(s.blob(2), s.blob(2).read_bytes()[:-1])),
    "tampered: payload": (
        Refusal.TAMPERED,
        lambda s: _edit_record(s, 2, lambda d: d["manifest"]["dsseEnvelope"].update(payload="e30=")),
    ),
    "tampered: blob is a pipe": (Refusal.TAMPERED, lambda s: (p := s.blob(2), p.unlink(), os.mkfifo(p))),
    "swapped: another version's record": (
        Refusal.SWAPPED,
        lambda s: replace_file(s.record(2), s.record(1).read_bytes()),
    ),
    "swapped: pointer stored under another serial": (
        Refusal.SWAPPED,
        lambda s: s.pointer(3).write_bytes(s.pointer(1).read_bytes()),
    ),
    "swapped: replayed pointer": (Refusal.SWAPPED, _replay),
    "swapped: pointer to another manifest": (Refusal.SWAPPED, lambda s: _point(s, s.publisher, 2, "0" * 64)),
    "swapped: version signed twice": (
        Refusal.SWAPPED,
        lambda s: s.plant(s.publisher.release(s.folder / "twice", 2, seed=77), 2),
    ),
    "rollback: last pointer removed": (Refusal.ROLLBACK, _roll_back),
    "equivocation: two pointers with one serial": (Refusal.EQUIVOCATION, _two_pointers),
    "expired": (Refusal.EXPIRED, _expire),
    "expired by a clock that was seen": (Refusal.EXPIRED, _freeze_clock),
    "mixed: provenance of another release": (
        Refusal.MIXED,
        lambda s: _edit_record(s, 2, lambda d: d.update(provenance=_other_record(s, 1)["provenance"])),
    ),
    "mixed: model.sig of another release": (
        Refusal.MIXED,
        lambda s: _edit_record(s, 2, lambda d: d["variants"].update({EDGE: _other_record(s, 1)["variants"][EDGE]})),
    ),
    "mixed: a model.sig is gone": (Refusal.MIXED, lambda s: _edit_record(s, 2, lambda d: d["variants"].pop(EDGE))),
    "path traversal, signed by the right key": (Refusal.UNSAFE_NAME, _traversal),
    "symlink: blob": (Refusal.SYMLINK, _linked_blob),
    "symlink: record": (Refusal.SYMLINK, _linked_record),
    "missing: blob": (Refusal.MISSING_FILE, lambda s: s.blob(2).unlink()),
    "oversized: record": (
        Refusal.OVERSIZED,
        lambda s: replace_file(s.record(2), s.record(2).read_bytes() + b" " * layout.MAX_RECORD),
    ),
    "oversized: pointer": (Refusal.OVERSIZED, lambda s: replace_file(s.pointer(2), b" " * (layout.MAX_POINTER + 1))),
    "hostile: GGUF header": (Refusal.HOSTILE_MODEL, _hostile),
    "malformed: record": (Refusal.MALFORMED, lambda s: replace_file(s.record(2), b"{")),
    "malformed: record nested deeply": (Refusal.MALFORMED, lambda s: replace_file(s.record(2), b"[" * 10**6)),
    "malformed: pointer": (Refusal.MALFORMED, lambda s: replace_file(s.pointer(2), b"{")),
}


@pytest.mark.parametrize("case", ON_THE_REGISTRY)
def test_an_attack_on_the_registry_is_refused(case: str, scene: Scene) -> None:
    """The update ends with the attack's own refusal; the active version, its files and the memory are as before."""
    refusal, attack = ON_THE_REGISTRY[case]
    attack(scene)
    before, memory = tree(scene.into), scene.memory.read_bytes()
    for update in (scene.update, scene.pull_only, scene.verify_only):
        with pytest.raises(TrustError) as caught:
            update()
        assert caught.value.refusal is refusal
        assert caught.value.exit_code == refusal.value
        after = tree(scene.into)
        assert {n: after[n] for n in after if not n.startswith(".partial")} == {
            n: before[n] for n in before if not n.startswith(".partial")
        }
        assert not [n for n in after if n.startswith(".partial/")]
        assert scene.memory.read_bytes() == memory
    assert not list(scene.folder.rglob("evil*"))


def test_the_scene_itself_is_sound(scene: Scene) -> None:
    """Without an attack the same update goes through, so that every refusal above is the attack's."""
    assert scene.update().manifest.release.version == 2
    assert scene.verify_pulled().manifest.release.version == 2


def test_an_older_version_by_name_needs_the_users_word(scene: Scene) -> None:
    """Who saw release 2 does not get release 1 by asking for it, unless they say that they mean it."""
    scene.update()
    with pytest.raises(TrustError) as caught:
        scene.update(version=1)
    assert caught.value.refusal is Refusal.ROLLBACK
    assert "--allow-rollback" in caught.value.hint
    assert tree(scene.into)["current"] == "versions/2"
    scene.pull_only(version=1, allow_rollback=True)
    assert tree(scene.into)["current"] == "versions/1"


def test_two_channels_are_followed_at_different_releases(scene: Scene) -> None:
    """One memory serves a consumer of dev at 2 and stable at 1, who may ask for either by its version."""
    scene.promote(1)
    for _ in range(2):
        assert scene.update().manifest.release.version == 2
        assert scene.update(channel=STABLE).manifest.release.version == 1
        assert scene.update(version=1).manifest.release.version == 1
    scene.promote(2)
    assert scene.update(channel=STABLE).manifest.release.version == 2
    _point(scene, scene.publisher, 1, scene.fetched(1).digest, serial=3, channel=STABLE)
    with pytest.raises(TrustError) as caught:
        scene.update(channel=STABLE)
    assert caught.value.refusal is Refusal.ROLLBACK


def test_another_channel_with_other_content_is_told(scene: Scene) -> None:
    """A registry that shows one release 2 on dev and another on stable is two-faced, though both are rightly signed."""
    scene.update()
    scene.plant(scene.publisher.release(scene.folder / "twice", 2, seed=77), 2)
    scene.promote(2)
    with pytest.raises(TrustError) as caught:
        scene.update(channel=STABLE)
    assert caught.value.refusal is Refusal.EQUIVOCATION


def test_a_version_that_changed_since_it_was_seen(scene: Scene) -> None:
    """The same version with other content, rightly signed, is told from what was seen before."""
    scene.update()
    scene.plant(scene.publisher.release(scene.folder / "twice", 2, seed=77), 2)
    before = tree(scene.into)
    with pytest.raises(TrustError) as caught:
        scene.update(version=2)
    assert caught.value.refusal is Refusal.EQUIVOCATION
    assert tree(scene.into) == before


def _link_file(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")


def _of_other_release(scene: Scene, *names: str) -> None:
    """Put the other release's statements beside the active version's files."""
    for name in names:
        replace_file(scene.into / "current" / name, (scene.into / "previous" / name).read_bytes())


def _swapped_folder(scene: Scene) -> None:
    accepted = fetch(scene.store, opener=scene.publisher.opener, line=LINE, seen=Seen(), now=NOW, channel=DEV)
    pull(scene.store, accepted, "large-x86_64", scene.into)


def _older_folder(scene: Scene) -> None:
    (scene.into / "current").unlink()
    (scene.into / "current").symlink_to("versions/1")


def _resigned(scene: Scene) -> None:
    stranger = Publisher()
    release = stranger.release(scene.folder / "strange", 2)
    replace_file(scene.into / "current/release.json", record.encode(release.bundles))
    replace_file(scene.into / "current/model.sig", record.normal(release.bundles.variants[EDGE]))


def _write(name: str, data: bytes) -> Callable[[Scene], object]:
    return lambda s: replace_file(s.into / "current" / name, data)


ON_THE_FOLDER: dict[str, tuple[Refusal, Callable[[Scene], object]]] = {
    "unsigned: no record": (Refusal.UNSIGNED, lambda s: (s.into / "current/release.json").unlink()),
    "unsigned: no model.sig": (Refusal.UNSIGNED, lambda s: (s.into / "current/model.sig").unlink()),
    "unsigned: empty model.sig": (Refusal.UNSIGNED, _write("model.sig", b"")),
    "wrong key": (Refusal.WRONG_SIGNER, _resigned),
    "tampered": (
        Refusal.TAMPERED,
        lambda s: replace_file(s.into / "current/model.gguf", flipped((s.into / "current/model.gguf").read_bytes())),
    ),
    "tampered: another release's file": (Refusal.TAMPERED, lambda s: _of_other_release(s, "model.gguf")),
    "swapped: another release's statements": (
        Refusal.TAMPERED,
        lambda s: (s.memory.unlink(), _of_other_release(s, "release.json", "model.sig")),
    ),
    "swapped: another variant": (Refusal.SWAPPED, _swapped_folder),
    "rollback: another release's statements": (
        Refusal.ROLLBACK,
        lambda s: _of_other_release(s, "release.json", "model.sig"),
    ),
    "rollback: an older folder": (Refusal.ROLLBACK, _older_folder),
    "expired": (Refusal.EXPIRED, _expire),
    "mixed: another release's model.sig": (Refusal.MIXED, lambda s: _of_other_release(s, "model.sig")),
    "mixed: another release's record": (
        Refusal.MIXED,
        lambda s: (s.memory.unlink(), _of_other_release(s, "release.json")),
    ),
    "symlink": (Refusal.SYMLINK, lambda s: _link_file(s.into / "versions/2", "model.gguf")),
    "symlink: record": (Refusal.SYMLINK, lambda s: _link_file(s.into / "versions/2", "release.json")),
    "missing": (Refusal.MISSING_FILE, lambda s: (s.into / "current/model.gguf").unlink()),
    "extra file": (Refusal.EXTRA_FILE, lambda s: (s.into / "current/evil.py").touch()),
    "extra folder": (Refusal.EXTRA_FILE, lambda s: (s.into / "current/evil").mkdir()),
    "oversized": (Refusal.OVERSIZED, _write("release.json", b" " * (layout.MAX_RECORD + 1))),
    "malformed record": (Refusal.MALFORMED, _write("release.json", b"{")),
    "malformed model.sig": (Refusal.MALFORMED, _write("model.sig", b"{")),
}


@pytest.mark.parametrize("case", ON_THE_FOLDER)
def test_an_attack_on_a_pulled_folder_is_refused(case: str, scene: Scene) -> None:
    """Verifying the active version ends with the attack's own refusal, and changes nothing."""
    scene.update()
    refusal, attack = ON_THE_FOLDER[case]
    attack(scene)
    before = tree(scene.folder)
    with pytest.raises(TrustError) as caught:
        scene.verify_pulled()
    assert caught.value.refusal is refusal
    assert tree(scene.folder) == before


def test_a_hostile_folder_is_refused(scene: Scene) -> None:
    """A model that is what was signed, but hostile, is refused where it lies, too."""
    scene.update()
    release = scene.publisher.release(scene.folder / "hostile", 3, files={f"{EDGE}/model.gguf": hostile_gguf()})
    replace_file(scene.into / "current/model.gguf", hostile_gguf())
    replace_file(scene.into / "current/release.json", record.encode(release.bundles))
    replace_file(scene.into / "current/model.sig", record.normal(release.bundles.variants[EDGE]))
    with pytest.raises(TrustError) as caught:
        scene.verify_pulled()
    assert caught.value.refusal is Refusal.HOSTILE_MODEL


def test_nobody_moves_a_channel_with_another_key(scene: Scene) -> None:
    """Promotion and rollback by a stranger end before anything is written."""
    before = tree(scene.root)
    opener, stranger = scene.publisher.opener, Publisher().sign
    accepted = fetch(scene.store, opener=opener, line=LINE, seen=Seen(), now=NOW, version=2)
    for move in (
        lambda: channels.promote(scene.store, accepted, channel=STABLE, signer=stranger, opener=opener),
        lambda: channels.rollback(scene.store, line=LINE, channel=DEV, signer=stranger, opener=opener, now=NOW),
    ):
        with pytest.raises(TrustError) as caught:
            move()
        assert caught.value.refusal is Refusal.WRONG_SIGNER
    assert {n: d for n, d in tree(scene.root).items() if "stable" not in n} == before


def test_a_two_faced_release_is_not_promoted(scene: Scene) -> None:
    """A pointer names the manifest it was decided on, not whatever lies under the version by then."""
    opener, sign = scene.publisher.opener, scene.publisher.sign
    accepted = fetch(scene.store, opener=opener, line=LINE, seen=Seen(), now=NOW, version=2)
    scene.plant(scene.publisher.release(scene.folder / "twice", 2, seed=77), 2)
    channels.promote(scene.store, accepted, channel=STABLE, signer=sign, opener=opener)
    with pytest.raises(TrustError) as caught:
        fetch(scene.store, opener=opener, line=LINE, seen=Seen(), now=NOW, channel=STABLE)
    assert caught.value.refusal is Refusal.SWAPPED


def _stock(scene: Scene, folder: Path) -> subprocess.CompletedProcess[str]:
    key = scene.folder / "key.pub"
    key.write_bytes(scene.publisher.pair.public_pem)
    command = [sys.executable, "-m", "model_signing", "verify", "key", "--public_key", str(key)]
    return subprocess.run(
        [*command, "--signature", "model.sig", "."], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("variant", [EDGE, "large-x86_64"])
def test_the_stock_verifier_agrees(variant: str, scene: Scene) -> None:
    """`model_signing verify`, run in INTO/current, accepts what was pulled and refuses what was changed since."""
    scene.update(variant)
    assert _stock(scene, scene.into / "current").returncode == 0
    (scene.into / "current/extra.py").touch()
    assert _stock(scene, scene.into / "current").returncode != 0


def test_the_bundles_survive_the_registry(scene: Scene) -> None:
    """What comes out of the registry is what was signed, statement by statement."""
    mine = scene.publish(3)
    accepted = scene.update()
    normal = replace(
        mine.bundles,
        manifest=record.normal(mine.bundles.manifest),
        provenance=record.normal(mine.bundles.provenance),
        variants={n: record.normal(b) for n, b in mine.bundles.variants.items()},
    )
    assert accepted.bundles == normal
