"""The manifest's bytes: they round-trip, keep what they do not know, and refuse names that lead elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalog.names import Variant
from pipeline.errors import Refusal, TrustError
from pipeline.manifest import dsse, statement
from pipeline.manifest.encoding import canonical
from pipeline.manifest.names import MAX_NAME, safe_name
from tests.support.evidence import evidence
from tests.support.releases import Publisher

Document = dict[str, Any]


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    release = Publisher().release(tmp_path_factory.mktemp("release"))
    return dsse.unverified_payload(release.bundles.manifest)


def _refusal(payload: bytes) -> Refusal:
    with pytest.raises(TrustError) as caught:
        statement.parse(payload)
    return caught.value.refusal


def _changed(payload: bytes, change: Callable[[Document], object]) -> bytes:
    document = json.loads(payload)
    change(document)
    return canonical(document)


def _rename(new: str, *, variant: int = 0) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        entry = document["predicate"]["variants"][variant]
        old = f"{entry['name']}/{entry['files'][0]['name']}"
        entry["files"][0]["name"] = new
        for subject in document["subject"]:
            if subject["name"] == old:
                subject["name"] = f"{entry['name']}/{new}"

    return change


def test_a_manifest_round_trips(payload: bytes) -> None:
    """What was signed, parsed and encoded again is the same bytes."""
    assert statement.parse(payload).encode() == payload


def test_a_variant_tuned_to_a_family_stands_beside_its_kin(tmp_path: Path) -> None:
    """Its entry names the family, its files lie under both names, and a variant for all prompts says nothing of one."""
    files = {"tiny-edge-arm64+lookup/model.gguf": b"GGUF"}
    found = statement.parse(dsse.unverified_payload(Publisher().release(tmp_path, files=files).bundles.manifest))
    entry = found.variant("tiny-edge-arm64+lookup")
    assert (entry.family, entry.variant.plain.name) == ("lookup", "tiny-edge-arm64")
    assert "tiny-edge-arm64+lookup/model.gguf" in found.files()
    assert b'"family"' not in found.variant("tiny-edge-arm64").encode()


words = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=12).map("x_".__add__)
values = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@given(extra=st.dictionaries(words, values, max_size=4))
def test_unknown_fields_are_kept(extra: Document, payload: bytes) -> None:
    """A newer writer's fields survive, wherever they stand."""

    def add(document: Document) -> None:
        variant = document["predicate"]["variants"][0]
        for place in (document, document["predicate"], document["predicate"]["release"], variant, variant["files"][0]):
            place.update(extra)

    newer = _changed(payload, add)
    assert statement.parse(newer).encode() == newer


@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_manifest_or_a_refusal(data: bytes) -> None:
    """Nothing but a TrustError comes out of bytes that are no manifest."""
    assert _refusal(data) is Refusal.MALFORMED


@given(where=st.data())
def test_a_damaged_manifest_is_parsed_or_refused(where: st.DataObject, payload: bytes) -> None:
    """Cutting or changing signed bytes anywhere never raises anything else."""
    at = where.draw(st.integers(0, len(payload) - 1))
    damaged = payload[:at] + where.draw(st.binary(max_size=3)) + payload[at + where.draw(st.integers(0, 9)) :]
    try:
        statement.parse(damaged)
    except TrustError as e:
        assert e.refusal in {Refusal.MALFORMED, Refusal.UNSAFE_NAME}


UNSAFE = {
    "above": "../x",
    "above, later": "a/../../x",
    "absolute": "/etc/passwd",
    "backslashes": "a\\..\\x",
    "drive": "C:x",
    "empty": "",
    "empty part": "a//b",
    "ends in a slash": "a/",
    "here": ".",
    "NUL": "a\0b",
    "line break": "a\nb",
    "line break at the end": "model.gguf\n",
    "space": "a b",
    "looks like ASCII": "m\u043edel.gguf",
    "too long": "a" * 201,
    "far too long": "a/" * MAX_NAME + "a",
    "home": "~/x",
    "option with quotes": "'x'",
    "signature's own name": "model.sig",
    "record's own name": "release.json",
    "record's own name, shouted": "RELEASE.JSON",
    "unsigned by others": ".git/hooks/x",
    "unsigned by others, itself": ".gitattributes",
}


@pytest.mark.parametrize("case", UNSAFE)
def test_an_unsafe_name_is_refused(case: str, payload: bytes) -> None:
    """A name that leads elsewhere, reads twice or stands for something else is refused, though signed."""
    assert _refusal(_changed(payload, _rename(UNSAFE[case]))) is Refusal.UNSAFE_NAME


def test_a_file_that_is_a_folder_too_is_refused(payload: bytes) -> None:
    """No folder on earth holds both `rank-0` and `rank-0/model.safetensors`."""
    assert _refusal(_changed(payload, _rename("rank-0", variant=0))) is Refusal.UNSAFE_NAME


@given(name=st.text(max_size=30) | st.from_regex(r"[A-Za-z0-9._+@=/-]{1,30}", fullmatch=True))
def test_a_safe_name_stays_below_its_folder(name: str) -> None:
    """Whatever `safe_name` lets through is a plain path below the folder it is created in."""
    try:
        safe_name(name)
    except TrustError as e:
        assert e.refusal is Refusal.UNSAFE_NAME
        return
    root = Path("/r/oot")
    assert name.isascii()
    assert (root / name).parts[:3] == root.parts
    assert ".." not in (root / name).parts
    assert (root / name).relative_to(root).as_posix() == name


def _duplicate_case(document: Document) -> None:
    files = document["predicate"]["variants"][0]["files"]
    twin = {**files[0], "name": files[0]["name"].upper()}
    files.append(twin)
    name = f"{document['predicate']['variants'][0]['name']}/{twin['name']}"
    document["subject"].append({"name": name, "digest": {"sha256": twin["sha256"]}})


MALFORMED: dict[str, Callable[[Document], object]] = {
    "another statement type": lambda d: d.update(_type="https://in-toto.io/Statement/v0.1"),
    "another predicate type": lambda d: d.update(predicateType="https://example.com/v1"),
    "subject without file": lambda d: d["subject"].append({"name": "a/b", "digest": {"sha256": "0" * 64}}),
    "file without subject": lambda d: d["subject"].pop(),
    "subject's digest differs": lambda d: d["subject"][0]["digest"].update(sha256="0" * 64),
    "same subject twice": lambda d: d["subject"].append(d["subject"][0]),
    "names differ only in case": _duplicate_case,
    "variant twice": lambda d: d["predicate"]["variants"].append(d["predicate"]["variants"][0]),
    "variant's name lacks its family": lambda d: d["predicate"]["variants"][0].update(family="lookup"),
    "family that no file can be called after": lambda d: d["predicate"]["variants"][0].update(family="../x"),
    "variant's name is not its tier": lambda d: d["predicate"]["variants"][0].update(tier="mid-tier"),
    "no variants": lambda d: (d["predicate"]["variants"].clear(), d["subject"].clear()),
    "version 0": lambda d: d["predicate"]["release"].update(version=0),
    "version is text": lambda d: d["predicate"]["release"].update(version="1"),
    "version is true": lambda d: d["predicate"]["release"].update(version=True),
    "expires without zone": lambda d: d["predicate"]["release"].update(expires="2026-01-01T00:00:00"),
    "negative size": lambda d: d["predicate"]["variants"][0]["files"][0].update(size=-1),
    "digest in capitals": lambda d: d["predicate"]["variants"][0]["files"][0].update(sha256="A" * 64),
}


def _prove(document: Document, **update: Any) -> None:
    """Give a variant a check on the host, and the golden prompts that were asked."""
    entry = document["predicate"]["variants"][0]
    found = evidence(Variant.parse(entry["name"])).encode()
    entry["evidence"] = [{**json.loads(found), "files": list(reversed(entry["files"])), **update}]
    golden = {"name": "golden.jsonl", "size": 1, "sha256": "0" * 64}
    entry["files"].append(golden)
    document["subject"].append({"name": f"{entry['name']}/golden.jsonl", "digest": {"sha256": golden["sha256"]}})


def test_evidence_is_of_the_released_files_and_prompts(payload: bytes) -> None:
    """Evidence of a variant's own files, in any order, without the golden prompts that lie beside them, is accepted."""
    found = statement.parse(_changed(payload, _prove))
    assert [e.runner for e in found.predicate.variants[0].evidence] == ["host"]


OTHER: dict[str, tuple[Document, str]] = {
    "another file": ({"files": [{"name": "model.gguf", "size": 1, "sha256": "a" * 64}]}, "other files"),
    "no file": ({"files": []}, "other files"),
    "another variant": ({"variant": "mid-tier-riscv64"}, "other files"),
    "other golden prompts": ({"golden_sha256": "1" * 64}, "other golden prompts"),
}


@pytest.mark.parametrize("case", OTHER)
def test_evidence_of_anything_else_is_refused(case: str, payload: bytes) -> None:
    """A manifest that carries evidence of an earlier release is refused, whoever signed it."""
    update, strays = OTHER[case]
    with pytest.raises(TrustError, match=f"its evidence on host is of {strays}") as caught:
        statement.parse(_changed(payload, lambda document: _prove(document, **update)))
    assert caught.value.refusal is Refusal.MIXED


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_manifest_is_refused(case: str, payload: bytes) -> None:
    """Subjects and variants must say the same, in the right types."""
    assert _refusal(_changed(payload, MALFORMED[case])) is Refusal.MALFORMED


def test_an_oversized_manifest_is_refused_unparsed() -> None:
    """Size is checked before the bytes are looked at."""
    assert _refusal(b"[" * (statement.MAX_BYTES + 1)) is Refusal.OVERSIZED
