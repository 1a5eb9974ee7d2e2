"""Signed evidence: what a check's statement says, and when it proves a variant."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.catalog.names import VARIANTS, RunnerClass, Target, Tier, Variant
from pipeline.errors import Refusal, TrustError
from pipeline.manifest import attestation, dsse, proof, statement
from pipeline.manifest.evidence import Evidence, File, Measurement, Missing
from pipeline.manifest.statement import Attestation, Manifest, ModelConfig, Predicate, VariantEntry
from pipeline.ports import keys
from tests.support.evidence import evidence, measurement
from tests.support.releases import Publisher

PI = Variant(Tier.TINY_EDGE, Target.ARM64)
FILES = [File(name="model.gguf", size=3, sha256="a" * 64)]


def _found(**update: Any) -> Evidence:
    return evidence(PI, runner=RunnerClass.PI5).model_copy(update={"files": FILES, **update})


def _measured(**update: Any) -> Measurement:
    return measurement(PI, runner=RunnerClass.PI5).model_copy(update=update)


def test_the_statement_is_an_in_toto_test_result_over_the_checked_files() -> None:
    """Type, subjects and the specification's own fields are there, beside evidence and measurement."""
    document = json.loads(attestation.build(_found(), _measured()))
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert document["subject"] == [{"name": "tiny-edge-arm64/model.gguf", "digest": {"sha256": "a" * 64}}]
    predicate = document["predicate"]
    assert predicate["result"] == "PASSED"
    assert predicate["failedTests"] == predicate["warnedTests"] == []
    assert predicate["configuration"] == [{"name": "golden.jsonl", "digest": {"sha256": "0" * 64}}]


@pytest.mark.parametrize(
    ("found", "measured", "result", "test"),
    [
        pytest.param({}, {}, "PASSED", None, id="passed"),
        pytest.param({"deterministic": False}, {}, "FAILED", "tokens-repeat", id="not repeatable"),
        pytest.param({"stand_in": "gloo on 2 CPU ranks"}, {}, "WARNED", "own-hardware", id="stand-in"),
        pytest.param({}, {"throttled": ["throttled"]}, "WARNED", "full-speed", id="throttled"),
    ],
)
def test_the_result_follows_from_the_run(
    found: dict[str, Any], measured: dict[str, Any], result: str, test: str | None
) -> None:
    """A run that differs fails, one beside the class's hardware or held back is marked, all others pass."""
    said = attestation.parse(attestation.build(_found(**found), _measured(**measured)))
    assert said.result == result
    assert [*said.warned_tests, *said.failed_tests] == ([test] if test else [])


def test_a_statement_covers_only_what_it_says() -> None:
    """Another measurement or other evidence than was signed is refused."""
    payload = attestation.build(_found(), _measured())
    attestation.check_covers(payload, _found(), _measured())
    for found, measured in (
        (_found(engine={}), _measured()),
        (_found(), _measured(peak_rss_bytes=2)),
        (_found(), None),
    ):
        with pytest.raises(TrustError) as refused:
            attestation.check_covers(payload, found, measured)
        assert refused.value.refusal is Refusal.MIXED


def test_subjects_are_the_evidences_own_files() -> None:
    """A statement whose subjects are not the files its evidence speaks of is refused."""
    document = json.loads(attestation.build(_found(), None))
    document["subject"][0]["digest"]["sha256"] = "b" * 64
    with pytest.raises(TrustError) as refused:
        attestation.parse(json.dumps(document).encode())
    assert refused.value.refusal is Refusal.MIXED


BOARD, STRANGER = Publisher(), Publisher()


def _manifest(found: Evidence | None, signer: keys.Signer = BOARD.sign, **update: Any) -> Manifest:
    """A manifest whose Pi variant has this evidence, signed."""
    variants = []
    for variant in VARIANTS:
        own = variant == PI and found is not None
        payload = attestation.build(found, _measured()) if found else b""
        variants.append(
            VariantEntry(
                name=variant.name, tier=variant.tier, target=variant.target, format="gguf", files=FILES, recipe={},
                model=ModelConfig(architecture="a", parameters=1, layers=1, hidden=1, vocabulary=1, context=1),
                evidence=[found] if own and found else [], measurements=[_measured()] if own else [],
                attestations=[Attestation(runner=RunnerClass.PI5, bundle=json.loads(signer(payload)))] if own else [],
            ).model_copy(update=update if variant == PI else {})
        )  # fmt: skip
    base = statement.parse(BOARD_MANIFEST).predicate
    return statement.build(Predicate(**{**dict(base), "variants": variants}))


@pytest.fixture(autouse=True, scope="module")
def _base(tmp_path_factory: pytest.TempPathFactory) -> None:
    global BOARD_MANIFEST  # noqa: PLW0603 - a release is made once
    release = BOARD.release(tmp_path_factory.mktemp("release"))
    BOARD_MANIFEST = BOARD.opener(release.bundles.manifest).payload


BOARD_MANIFEST = b""


def _require(manifest: Manifest, variant: str | None = PI.name) -> list[str]:
    return proof.require(manifest, RunnerClass.PI5, BOARD.opener, variant)


def test_signed_evidence_of_the_released_files_is_proof() -> None:
    """A variant with a passing check by a pinned key is proven."""
    assert _require(_manifest(_found())) == [PI.name]


@pytest.mark.parametrize(
    ("manifest", "refusal", "says"),
    [
        pytest.param(lambda: _manifest(None), Refusal.UNPROVEN, "there is no signed evidence", id="no evidence"),
        pytest.param(
            lambda: _manifest(None, missing=[Missing(variant=PI.name, runner=RunnerClass.PI5, missing="no board")]),
            Refusal.UNPROVEN, "no board", id="missing",
        ),
        pytest.param(lambda: _manifest(_found(), attestations=[]), Refusal.UNPROVEN, "no signed", id="unsigned"),
        pytest.param(
            lambda: _manifest(_found(stand_in="something else")), Refusal.UNPROVEN, "something else", id="stand-in"
        ),
        pytest.param(lambda: _manifest(_found(deterministic=False)), Refusal.UNPROVEN, "failed", id="failed"),
        pytest.param(lambda: _manifest(_found(), STRANGER.sign), Refusal.WRONG_SIGNER, "not pinned", id="stranger"),
        pytest.param(
            lambda: _manifest(_found(), evidence=[_found(engine={"name": "other"})]), Refusal.MIXED, "not what was signed",
            id="exchanged evidence",
        ),
        pytest.param(
            lambda: _manifest(_found(files=[FILES[0].model_copy(update={"sha256": "b" * 64})])),
            Refusal.MIXED, "of other files", id="other files",
        ),
        pytest.param(
            lambda: _manifest(_found(variant="mid-tier-arm64")), Refusal.MIXED, "of other files", id="another variant's"
        ),
    ],
)  # fmt: skip
def test_anything_else_is_no_proof(manifest: Any, refusal: Refusal, says: str) -> None:
    """What is missing, marked, failed, exchanged or signed by someone else is refused with its reason."""
    with pytest.raises(TrustError, match=says) as refused:
        _require(manifest())
    assert refused.value.refusal is refusal


def test_all_variants_of_a_class_must_be_proven() -> None:
    """Without a name every variant the class can speak of is required: here the other arm64 tier is missing."""
    with pytest.raises(TrustError, match="mid-tier-arm64 is not proven on pi5"):
        _require(_manifest(_found()), None)


@pytest.mark.parametrize(
    ("runner", "variants"),
    [
        (RunnerClass.PI5, {"tiny-edge-arm64", "mid-tier-arm64"}),
        (RunnerClass.RISCV, {"tiny-edge-riscv64", "mid-tier-riscv64"}),
        (RunnerClass.NVLINK, {"large-arm64", "large-riscv64", "large-x86_64"}),
        (RunnerClass.EMULATED, {f"{t}-{a}" for t in ("tiny-edge", "mid-tier") for a in ("arm64", "riscv64")}),
        (RunnerClass.HOST, {v.name for v in VARIANTS}),
    ],
)
def test_what_a_class_can_speak_of(runner: RunnerClass, variants: set[str]) -> None:
    """Each runner class proves the variants it can run."""
    entries = _manifest(None).predicate.variants
    assert {e.name for e in entries if proof.provable(e, runner)} == variants


def test_the_board_key_is_checked_by_its_bytes() -> None:
    """A key that is pinned opens, another does not."""
    bundle = BOARD.sign(attestation.build(_found(), None))
    assert BOARD.opener(bundle).payload
    with pytest.raises(TrustError):
        STRANGER.opener(bundle)
    assert dsse.unverified_payload(bundle)
