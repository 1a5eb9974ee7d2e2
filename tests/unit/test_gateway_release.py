"""The gateway's release: what it takes from a channel, and what it stays with when things go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RegistryError, TrustError
from pipeline.manifest.encoding import sha256
from pipeline.peers.releases import Listed, ReleaseList
from pipeline.serving.decision import Counted
from pipeline.serving.gateway import tokens
from pipeline.serving.gateway.release import Held, Source, refresh, tokenizer
from pipeline.serving.snapshot import Offered
from tests.support.releases import EDGE, LATER, NOW, Publisher, checked_files
from tests.support.scenes import Scene

GRACE = timedelta(minutes=10)
SHARDS = {"large-x86_64/shards.json": b"{}"}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    made.publish(1, files=SHARDS)
    return made


def _current(held: Held) -> dict[str, Offered]:
    return {o.name: o for o in held.offers(NOW, GRACE).values() if o.current}


def test_variants_are_known_by_the_file_their_servers_load(scene: Scene) -> None:
    """A GGUF variant by its GGUF file, the large one by shards.json."""
    held = scene.held()
    assert (held.version, held.problem) == (1, None)
    weights = sha256((scene.root / f"release-1/{EDGE}/model.gguf").read_bytes())
    assert {name: o.digest for name, o in _current(held).items()} == {
        EDGE: weights, "tiny-edge-x86_64": weights, "large-x86_64": sha256(b"{}")
    }  # fmt: skip


def test_a_family_has_the_kl_of_the_widest_check(tmp_path: Path) -> None:
    """Of a variant's checks the one with the most prompts says its KL by family."""

    def add(document: dict[str, Any]) -> None:
        entry = document["predicate"]["variants"][1]
        entry["evidence"] = [{**_evidence(kl, n), "files": checked_files(entry)} for kl, n in ((0.5, 1), (0.25, 2))]

    scene = Scene(tmp_path)
    scene.publish(1, mutate=add)
    (variant,) = (o for o in _current(scene.held()).values() if o.families)
    assert variant.families == {"lookup": 0.25}


def _evidence(kl: float, prompts: int) -> dict[str, Any]:
    family = {"prompts": prompts, "exact_match": 1.0, "mean_kl": kl}
    quality = {"exact_match": 1.0, "mean_kl": kl, "p99_kl": kl, "perplexity_ratio": 1.0, "families": {"lookup": family}}
    answers = [{"id": str(i), "tokens": [1], "passed": True} for i in range(prompts)]
    return {
        "variant": EDGE, "runner": "host", "golden_sha256": "0" * 64, "engine": {}, "deterministic": True,
        "answers": answers, "quality": quality, "memory": {"model_bytes": 1, "bytes_per_token": 1},
    }  # fmt: skip


def test_a_new_release_takes_over_and_the_old_one_stays_for_a_while(scene: Scene) -> None:
    """Servers that still run the release before are accepted for the grace, and told from the current ones."""
    held = scene.held()
    scene.publish(2, files=SHARDS)
    held = scene.held(held)
    assert held.version == 2
    both = held.offers(NOW + GRACE / 2, GRACE)
    assert sorted((o.name, o.current) for o in both.values() if o.name == EDGE) == [(EDGE, False), (EDGE, True)]
    assert all(o.current for o in held.offers(NOW + GRACE, GRACE).values())


def test_a_rollback_is_followed(scene: Scene) -> None:
    """A signed move back is followed like one forward."""
    scene.publish(2)
    held = scene.held()
    scene.rollback()
    assert scene.held(held).version == 1


def _gone(scene: Scene) -> None:
    scene.gone = True


def _foreign(scene: Scene) -> None:
    scene.registry = "foreign"
    scene.publish(7, by=Publisher())


def _damaged(scene: Scene) -> None:
    scene.publish(2)
    for path in (scene.root / scene.registry).glob("releases/*/*2.json"):
        path.chmod(0o644)
        path.write_bytes(b"{}")


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(_gone, id="registry gone"),
        pytest.param(_foreign, id="signed by someone else"),
        pytest.param(_damaged, id="damaged record"),
    ],
)
@pytest.mark.parametrize("restarted", [pytest.param(False, id="running"), pytest.param(True, id="restarted")])
def test_the_last_good_release_stays(scene: Scene, trouble: Callable[[Scene], None], restarted: bool) -> None:
    """Whatever is wrong with the newest, the last good release is served and the reason told, over restarts too."""
    held = scene.held()
    trouble(scene)
    after = scene.held(None if restarted else held)
    assert after.version == 1
    assert after.problem
    assert _current(after) == _current(held)


def test_an_old_copy_on_disk_is_not_believed(scene: Scene) -> None:
    """Who puts an older copy in the place of the last good one does not bring that release back."""
    scene.held()
    old = (scene.root / "gateway/release.json").read_bytes()
    scene.publish(2)
    scene.held()
    scene.gone = True
    assert scene.held().version == 2
    (scene.root / "gateway/release.json").write_bytes(old)
    assert scene.held().version == 0


def test_an_expired_release_serves_nothing(scene: Scene) -> None:
    """Past its expiry a release is not offered, though the registry has no newer one."""
    held = scene.held()
    assert scene.held(held, LATER).offers(LATER, GRACE) == {}


def test_the_tokenizer_is_pulled_once_and_verified_again(scene: Scene) -> None:
    """With the registry gone the pulled file serves on, unless it was changed."""
    held = scene.held()
    assert held.current is not None
    path = tokenizer(scene.source, held.current, NOW)
    assert path.read_bytes() == (scene.root / f"release-1/{EDGE}/model.gguf").read_bytes()
    scene.gone = True
    again = tokenizer(scene.source, held.current, NOW)
    assert again.read_bytes() == path.read_bytes()
    again.chmod(0o644)
    again.write_bytes(b"other")
    with pytest.raises(TrustError):
        tokenizer(scene.source, held.current, NOW)


def test_a_release_without_a_vocabulary_says_so(scene: Scene) -> None:
    """Where the release has no tiny-edge GGUF, the error says what is missing."""
    accepted = scene.held().current
    assert accepted is not None
    predicate = accepted.manifest.predicate
    large = [v for v in predicate.variants if v.name.startswith("large")]
    bare = replace(
        accepted,
        manifest=accepted.manifest.model_copy(update={"predicate": predicate.model_copy(update={"variants": large})}),
    )
    with pytest.raises(RegistryError, match="no tiny-edge variant"):
        tokenizer(scene.source, bare, NOW)


@pytest.mark.parametrize("text", ["", "ab", "äöü", "\ud800", "x" * 5000])
def test_bytes_bound_tokens(text: str) -> None:
    """Without a vocabulary the count is at least the bytes, and marked."""
    found, counted = asyncio.run(tokens.ByteCounter().count([text], chat=True))
    assert found >= len(text.encode(errors="replace"))
    assert counted is Counted.BYTES


def test_without_a_usable_vocabulary_bytes_are_counted(tmp_path: Path) -> None:
    """A file that llama.cpp cannot read leads to the bound, not to an error."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert tokens.counter(tmp_path / "model.gguf").counted is Counted.BYTES


def _list(scene: Scene, *releases: tuple[int, str]) -> Source:
    """What reads the same registry, told by a list which releases servers may be on."""
    path = scene.root / "releases.json"
    listed = [Listed(version=version, manifest_sha256=digest) for version, digest in releases]
    path.write_bytes(ReleaseList(releases=listed).encode())
    return replace(scene.source, listed=path)


def _digests(scene: Scene) -> dict[int, str]:
    """Manifests by version, 1 to 3."""
    found = {}
    for version in (1, 2, 3):
        if version > 1:
            scene.publish(version, files=SHARDS)
        held = scene.held()
        assert held.current
        found[version] = held.current.digest
    return found


def test_a_list_says_which_releases_servers_may_be_on(scene: Scene) -> None:
    """All of its releases are accepted alike, however long it takes; none but those are."""
    digest = _digests(scene)
    held = refresh(Held(), _list(scene, (2, digest[2]), (1, digest[1])), NOW)
    assert (held.version, held.problem) == (2, None)
    assert [o.current for o in held.offers(NOW + 100 * GRACE, GRACE).values() if o.name == EDGE] == [True, True]
    assert [held.knows(digest[v]) for v in (1, 2, 3)] == [True, True, False]
    back = refresh(held, _list(scene, (1, digest[1])), NOW)
    assert (back.version, back.knows(digest[2])) == (1, False)


def test_a_listed_release_is_that_very_one(scene: Scene) -> None:
    """An entry whose digest is another one's is left out and told of; the rest of the list counts."""
    digest = _digests(scene)
    held = refresh(Held(), _list(scene, (2, digest[3]), (1, digest[1])), NOW)
    assert held.version == 1
    assert held.problem
    assert not held.knows(digest[2])


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"releases": []}', None], ids=["empty", "no list", "none", "no file"])
def test_a_damaged_list_changes_nothing(scene: Scene, damage: bytes | None) -> None:
    """What was held stays, with the reason."""
    digest = _digests(scene)
    source = _list(scene, (2, digest[2]), (1, digest[1]))
    held = refresh(Held(), source, NOW)
    assert source.listed
    source.listed.unlink() if damage is None else source.listed.write_bytes(damage)
    after = refresh(held, source, NOW)
    assert (after.version, after.also) == (2, held.also)
    assert after.problem
