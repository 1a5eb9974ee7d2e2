"""Signed evidence: one check's result as an in-toto test-result, over the files that were checked.

Source: https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md (v0.1).

Rules: the subjects are the variant's files as they were checked; the tests are those of the check itself, so a result
that passed has no failed test; evidence and measurement are carried whole, and a manifest may embed only what they say.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from pipeline.errors import Refusal, TrustError
from pipeline.manifest.encoding import Record, decode
from pipeline.manifest.evidence import Evidence, Measurement
from pipeline.manifest.statement import GOLDEN, STATEMENT_TYPE, Digest, Subject

PREDICATE_TYPE: Final = "https://in-toto.io/attestation/test-result/v0.1"
PASSED, WARNED, FAILED = "PASSED", "WARNED", "FAILED"


class Configuration(Record):
    """What the test was made with: a resource descriptor."""

    name: str
    digest: Digest


class TestResult(Record):
    """The predicate: the specification's fields, and beside them what was found."""

    result: Literal["PASSED", "WARNED", "FAILED"]
    configuration: list[Configuration]
    passed_tests: Annotated[list[str], Field(alias="passedTests")]
    warned_tests: Annotated[list[str], Field(alias="warnedTests")]
    failed_tests: Annotated[list[str], Field(alias="failedTests")]
    evidence: Evidence
    measurement: Measurement | None = None


class TestStatement(Record):
    """The statement around it."""

    type_: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    predicate_type: Annotated[Literal["https://in-toto.io/attestation/test-result/v0.1"], Field(alias="predicateType")]
    subject: Annotated[list[Subject], Field(min_length=1)]
    predicate: TestResult


def build(evidence: Evidence, measurement: Measurement | None) -> bytes:
    """Return the statement of one check, to be signed.

    Its tests: `tokens-repeat` (failed where two passes differed), `own-hardware` (warned where something stood in) and
    `full-speed` (warned where the machine was throttled).
    """
    throttled = measurement is not None and bool(measurement.throttled)
    outcomes = {
        "tokens-repeat": PASSED if evidence.deterministic else FAILED,
        "own-hardware": PASSED if evidence.stand_in is None else WARNED,
        "full-speed": WARNED if throttled else PASSED,
    }
    grouped = {
        kind: [test for test, outcome in outcomes.items() if outcome == kind] for kind in (PASSED, WARNED, FAILED)
    }
    predicate: dict[str, Any] = {
        "result": next(kind for kind in (FAILED, WARNED, PASSED) if grouped[kind]),
        "configuration": [Configuration(name=GOLDEN, digest=Digest(sha256=evidence.golden_sha256))],
        "passed_tests": grouped[PASSED],
        "warned_tests": grouped[WARNED],
        "failed_tests": grouped[FAILED],
        "evidence": evidence,
        "measurement": measurement,
    }
    return TestStatement(
        type_=STATEMENT_TYPE,
        predicate_type=PREDICATE_TYPE,
        subject=[Subject(name=f"{evidence.variant}/{f.name}", digest=Digest(sha256=f.sha256)) for f in evidence.files],
        predicate=TestResult(**predicate),
    ).encode()


def parse(payload: bytes) -> TestResult:
    """Return the result in a verified payload.

    Raises:
        TrustError: MALFORMED, or MIXED where subjects and evidence differ.
    """
    statement = decode(payload, TestStatement, "evidence")
    found = statement.predicate
    signed = {(s.name, s.digest.sha256) for s in statement.subject}
    if signed != {(f"{found.evidence.variant}/{f.name}", f.sha256) for f in found.evidence.files}:
        raise TrustError(
            Refusal.MIXED, f"the evidence of {found.evidence.variant} is not of the files it is signed for"
        )
    return found


def check_covers(payload: bytes, evidence: Evidence, measurement: Measurement | None) -> TestResult:
    """Return the result in a verified payload; raises TrustError MIXED unless it says exactly this."""
    found = parse(payload)
    if found.evidence != evidence or found.measurement != measurement:
        raise TrustError(
            Refusal.MIXED, f"the manifest's evidence of {evidence.variant} on {evidence.runner} is not what was signed"
        )
    return found
