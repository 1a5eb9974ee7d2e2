"""The rules over signed statements: each refusal has its case, and what is fine passes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalog.names import Channel
from pipeline.errors import Refusal, TrustError
from pipeline.manifest import dsse, pointer
from pipeline.manifest.dsse import Opener
from pipeline.manifest.pointer import PointerPredicate
from pipeline.manifest.rules import BY_VERSION, Accepted, Bundles, Last, Seen, accept_pointer, accept_release
from tests.support.releases import LINE, NOW, Publisher

OTHER = "f" * 64
SAME = "the release's own"


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def bundles(publisher: Publisher, tmp_path: Path) -> Bundles:
    return publisher.release(tmp_path, 2).bundles


@pytest.fixture
def pointed(publisher: Publisher, bundles: Bundles) -> PointerPredicate:
    return _pointer(manifest_sha256=_accept(bundles, publisher.opener).digest)


def _accept(bundles: Bundles, opener: Opener, **changed: Any) -> Accepted:
    usual: dict[str, Any] = {"line": LINE, "version": 2, "seen": Seen(), "now": NOW}
    return accept_release(bundles, opener=opener, **{**usual, **changed})


def _pointer(**changed: Any) -> PointerPredicate:
    usual = {"line": LINE, "channel": Channel.DEV, "serial": 5, "version": 2, "tag": "v2", "manifest_sha256": OTHER}
    return PointerPredicate(**{**usual, **changed})


def _seen(digest: str = OTHER, **versions: int) -> Seen:
    """Return a memory of one version a channel, all with one digest."""
    return Seen({name.replace("_", "-"): Last(version, digest) for name, version in versions.items()})


def _both(one: Seen, other: Seen) -> Seen:
    return Seen({**one.releases, **other.releases})


def _tagged(opener: Opener, tag: str) -> Opener:
    return lambda bundle: replace(opener(bundle), tag=tag)


def _refused(refusal: Refusal, call: Callable[[], object]) -> TrustError:
    with pytest.raises(TrustError) as caught:
        call()
    assert caught.value.refusal is refusal
    assert caught.value.exit_code == refusal.value
    return caught.value


def test_a_good_release_is_accepted(publisher: Publisher, bundles: Bundles, pointed: PointerPredicate) -> None:
    """Signed, in time, under its own name and pointed to: the release and what to remember of it come out."""
    accepted = _accept(bundles, publisher.opener, pointer=pointed)
    assert accepted.manifest.release.version == 2
    assert accepted.seen == Seen({"dev": Last(2, accepted.digest)}, time=NOW.timestamp())
    assert accepted.pointer == pointed
    assert accepted.bundles == bundles


REFUSED = {
    "another line": (Refusal.SWAPPED, {"line": "other"}),
    "another version": (Refusal.SWAPPED, {"version": 3}),
    "pointer to another manifest": (Refusal.SWAPPED, {"pointer": _pointer()}),
    "pointer to another version": (Refusal.SWAPPED, {"pointer": _pointer(version=1)}),
    "expired": (Refusal.EXPIRED, {"now": NOW + timedelta(days=31)}),
    "expired this second": (Refusal.EXPIRED, {"now": NOW + timedelta(days=30)}),
    "expired by a clock seen before": (
        Refusal.EXPIRED,
        {"now": datetime(1970, 1, 2, tzinfo=UTC), "seen": Seen(time=(NOW + timedelta(days=31)).timestamp())},
    ),
    "rollback allowed, but expired": (
        Refusal.EXPIRED,
        {"seen": _seen(dev=3), "allow_rollback": True, "now": NOW + timedelta(days=31)},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_release_is_refused(case: str, publisher: Publisher, bundles: Bundles) -> None:
    """A signed release that breaks one rule is refused with that rule's code."""
    refusal, changed = REFUSED[case]
    _refused(refusal, lambda: _accept(bundles, publisher.opener, **changed))


IN_TIME = {
    "last second": {"now": NOW + timedelta(days=30) - timedelta(seconds=1)},
    "a clock that fell back": {"now": datetime(1970, 1, 2, tzinfo=UTC), "seen": Seen(time=NOW.timestamp())},
}


@pytest.mark.parametrize("case", IN_TIME)
def test_a_release_passes_in_time(case: str, publisher: Publisher, bundles: Bundles) -> None:
    """Until its last second a release is accepted, and the remembered clock never runs back."""
    accepted = _accept(bundles, publisher.opener, **IN_TIME[case])
    assert accepted.seen.time >= IN_TIME[case].get("seen", Seen()).time


# What was seen before, and what becomes of release 2 on channel dev, or asked for by version.
ON_DEV: dict[str, tuple[Seen, Refusal | None]] = {
    "first of all": (Seen(), None),
    "newer": (_seen(dev=1), None),
    "the same again": (_seen(SAME, dev=2), None),
    "older": (_seen(dev=3), Refusal.ROLLBACK),
    "older, but newer than another channel's": (_seen(dev=3, stable=1), Refusal.ROLLBACK),
    "first here, another channel is further": (_seen(stable=3), None),
    "newer, another channel is further": (_seen(dev=1, stable=3), None),
    "older than one asked for by version": (_seen(by_version=3), None),
    "other content": (_seen(dev=2), Refusal.EQUIVOCATION),
    "other content on another channel": (_seen(stable=2), Refusal.EQUIVOCATION),
    "other content by version": (_seen(by_version=2), Refusal.EQUIVOCATION),
    "older, and other content on another channel": (_both(_seen(dev=3), _seen(stable=2)), Refusal.EQUIVOCATION),
}
BY_ITS_VERSION: dict[str, tuple[Seen, Refusal | None]] = {
    "first of all": (Seen(), None),
    "newer than any": (_seen(dev=1, stable=1, by_version=1), None),
    "the last one again": (_seen(SAME, by_version=2), None),
    "the last one again, a channel is further": (_both(_seen(dev=3), _seen(SAME, by_version=2)), None),
    "a channel's, another is further": (_both(_seen(dev=3), _seen(SAME, stable=2)), None),
    "between two channels'": (_seen(dev=3, stable=1), Refusal.ROLLBACK),
    "older than a channel's": (_seen(dev=3), Refusal.ROLLBACK),
    "older than the last one": (_seen(by_version=3), Refusal.ROLLBACK),
    "other content on a channel": (_seen(dev=2), Refusal.EQUIVOCATION),
    "other content by version": (_seen(by_version=2), Refusal.EQUIVOCATION),
}
HISTORY = {
    **{f"on dev: {name}": (True, *case) for name, case in ON_DEV.items()},
    **{f"by version: {name}": (False, *case) for name, case in BY_ITS_VERSION.items()},
}


@pytest.mark.parametrize("case", HISTORY)
def test_what_was_seen_decides(case: str, publisher: Publisher, bundles: Bundles, pointed: PointerPredicate) -> None:
    """A channel is compared with itself, a version with all; the user's word allows what is older, and nothing else."""
    on_dev, before, refusal = HISTORY[case]
    own = pointed.manifest_sha256
    seen = Seen({s: Last(r.version, own if r.digest == SAME else r.digest) for s, r in before.releases.items()})
    asked: dict[str, Any] = {"seen": seen, "pointer": pointed if on_dev else None}
    if refusal is not None:
        _refused(refusal, lambda: _accept(bundles, publisher.opener, **asked))
    if refusal is Refusal.EQUIVOCATION:
        _refused(refusal, lambda: _accept(bundles, publisher.opener, allow_rollback=True, **asked))
        return
    accepted = _accept(bundles, publisher.opener, allow_rollback=refusal is not None, **asked)
    assert accepted.seen.releases == {**seen.releases, "dev" if on_dev else BY_VERSION: Last(2, own)}


def test_a_channel_that_was_rolled_back_permits_an_older_release(
    publisher: Publisher, bundles: Bundles, pointed: PointerPredicate
) -> None:
    """Only where a move since what was seen says so does a channel lead back."""
    seen = _seen(dev=3)
    back = _accept(bundles, publisher.opener, seen=seen, pointer=pointed, rolled_back=True)
    assert (back.seen.releases["dev"].version, back.rolled_back) == (2, True)
    _refused(Refusal.ROLLBACK, lambda: _accept(bundles, publisher.opener, seen=seen, pointer=pointed))


def test_the_signer_must_have_run_for_the_manifests_tag(publisher: Publisher, bundles: Bundles) -> None:
    """A run for another tag cannot sign this release."""
    assert _accept(bundles, _tagged(publisher.opener, "v2"))
    _refused(Refusal.WRONG_SIGNER, lambda: _accept(bundles, _tagged(publisher.opener, "v3")))


MIXED: dict[str, Callable[[Bundles, Bundles], Bundles]] = {
    "another release's provenance": lambda one, two: replace(one, provenance=two.provenance),
    "another release's model signature": lambda one, two: replace(
        one, variants={**one.variants, "tiny-edge-arm64": two.variants["tiny-edge-arm64"]}
    ),
    "another variant's model signature": lambda one, _: replace(
        one, variants={**one.variants, "large-x86_64": one.variants["tiny-edge-arm64"]}
    ),
    "a model signature too few": lambda one, _: replace(
        one, variants={n: b for n, b in one.variants.items() if n != "large-x86_64"}
    ),
    "a model signature too many": lambda one, _: replace(
        one, variants={**one.variants, "large-arm64": one.variants["large-x86_64"]}
    ),
}


@pytest.mark.parametrize("case", MIXED)
def test_statements_of_two_releases_do_not_mix(
    case: str, publisher: Publisher, bundles: Bundles, tmp_path: Path
) -> None:
    """All statements of a release must speak of the same files, each signed as it may be."""
    other = publisher.release(tmp_path / "other", 3).bundles
    _refused(Refusal.MIXED, lambda: _accept(MIXED[case](bundles, other), publisher.opener))


BROKEN: dict[str, tuple[Refusal, Callable[[bytes], bytes]]] = {
    "nothing": (Refusal.UNSIGNED, lambda b: b""),
    "not JSON": (Refusal.MALFORMED, lambda b: b"{"),
    "no envelope": (Refusal.MALFORMED, lambda b: b"{}"),
    "nested deeply": (Refusal.MALFORMED, lambda b: b"[" * 100_000),
    "too large": (Refusal.OVERSIZED, lambda b: b" " * (dsse.MAX_BUNDLE + 1)),
    "two signatures": (Refusal.MALFORMED, lambda b: _edited(b, lambda d: d["signatures"].append(d["signatures"][0]))),
    "no signature": (Refusal.MALFORMED, lambda b: _edited(b, lambda d: d["signatures"].clear())),
    "payload changed": (Refusal.TAMPERED, lambda b: _edited(b, lambda d: d.update(payload="e30="))),
    "another payload type": (Refusal.MALFORMED, lambda b: _edited(b, lambda d: d.update(payloadType="text/plain"))),
    "signature changed": (
        Refusal.TAMPERED,
        lambda b: _edited(b, lambda d: d["signatures"][0].update(sig=base64.b64encode(b"x" * 70).decode())),
    ),
    "another key": (Refusal.WRONG_SIGNER, lambda b: Publisher().sign(dsse.unverified_payload(b))),
}


def _edited(bundle: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(bundle)
    edit(document["dsseEnvelope"])
    return json.dumps(document).encode()


@pytest.mark.parametrize("part", ["manifest", "provenance", "variant"])
@pytest.mark.parametrize("case", BROKEN)
def test_nothing_counts_before_its_signature_holds(
    case: str, part: str, publisher: Publisher, bundles: Bundles
) -> None:
    """Every statement's signature is checked, whichever it is."""
    refusal, damage = BROKEN[case]
    if part == "variant":
        damaged = replace(bundles, variants={**bundles.variants, EDGE: damage(bundles.variants[EDGE])})
    else:
        damaged = replace(bundles, **{part: damage(getattr(bundles, part))})
    _refused(refusal, lambda: _accept(damaged, publisher.opener))


EDGE = "tiny-edge-arm64"

POINTERS = {
    "another line": (Refusal.SWAPPED, {"line": "other"}, Seen()),
    "another channel": (Refusal.SWAPPED, {"channel": Channel.STABLE}, Seen()),
    "stored under another serial": (Refusal.SWAPPED, {"serial": 6}, Seen()),
    "older than seen": (Refusal.ROLLBACK, {}, Seen(serials={"dev": 6}, pointers={"dev": OTHER})),
    "same serial, other content": (Refusal.EQUIVOCATION, {}, Seen(serials={"dev": 5}, pointers={"dev": OTHER})),
    "same serial, content forgotten": (Refusal.EQUIVOCATION, {}, Seen(serials={"dev": 5})),
}


def _bundle(publisher: Publisher, **changed: Any) -> bytes:
    return publisher.sign(pointer.build(_pointer(**changed)).encode())


@pytest.mark.parametrize("case", POINTERS)
def test_a_pointer_is_refused(case: str, publisher: Publisher) -> None:
    """A signed pointer that breaks one rule is refused with that rule's code."""
    refusal, changed, seen = POINTERS[case]
    bundle = _bundle(publisher, **changed)
    _refused(
        refusal,
        lambda: accept_pointer(bundle, opener=publisher.opener, line=LINE, channel="dev", serial=5, seen=seen),
    )


def test_a_pointer_is_accepted_again_and_remembered(publisher: Publisher) -> None:
    """The same pointer may be seen twice; other channels' memory stays."""
    bundle = _bundle(publisher)
    seen = Seen(serials={"stable": 9}, pointers={"stable": OTHER})
    for _ in range(2):
        found, seen = accept_pointer(bundle, opener=publisher.opener, line=LINE, channel="dev", serial=5, seen=seen)
    assert found.version == 2
    assert seen.serials == {"stable": 9, "dev": 5}


def test_a_manifest_is_no_pointer(publisher: Publisher, bundles: Bundles) -> None:
    """A statement of another kind, rightly signed, does not pass for a pointer."""
    _refused(
        Refusal.MALFORMED,
        lambda: accept_pointer(
            bundles.manifest, opener=publisher.opener, line=LINE, channel="dev", serial=5, seen=Seen()
        ),
    )


def test_a_pointer_may_come_from_any_tags_run(
    publisher: Publisher, bundles: Bundles, pointed: PointerPredicate
) -> None:
    """A newer run may sign the move to a release, but not the release."""
    moved = publisher.sign(pointer.build(pointed).encode())
    newer = _tagged(publisher.opener, "v9")
    found, seen = accept_pointer(moved, opener=newer, line=LINE, channel="dev", serial=5, seen=Seen())
    assert _accept(bundles, _tagged(publisher.opener, "v2"), pointer=found, seen=seen)
    _refused(Refusal.WRONG_SIGNER, lambda: _accept(bundles, newer, pointer=found, seen=seen))
