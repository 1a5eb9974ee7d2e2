"""Who signs what: this job its own checks, a board its own, and nothing else counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.catalog.names import RunnerClass, Target, Tier, Variant
from pipeline.errors import Refusal, StageError, TrustError
from pipeline.manifest import attestation
from pipeline.manifest.evidence import Evidence, File
from pipeline.manifest.gate import MEASURED
from pipeline.ports import files
from pipeline.stages import attest, findings
from pipeline.stages.project import Project
from tests.support.evidence import evidence, measurement
from tests.support.projects import REPOSITORY
from tests.support.releases import Publisher

PI = Variant(Tier.TINY_EDGE, Target.ARM64)
LARGE = Variant(Tier.LARGE, Target.X86_64)


def _project(root: Path, **keys: Publisher) -> Project:
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    params["runners"] = {runner: {"public_keys": [who.pair.public_pem.decode()]} for runner, who in keys.items()}
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return Project.load(root)


def _checked(project: Project, variant: Variant, runner: RunnerClass, **update: object) -> Evidence:
    model = File(name="model.gguf", size=1, sha256="a" * 64)
    found = evidence(variant, runner=runner).model_copy(update={"files": [model], **update})
    files.write(project.evidence(variant, runner), found.encode())
    if runner in MEASURED:
        files.write(project.measurement(variant, runner), measurement(variant, runner=runner).encode())
    return found


def _objections(project: Project) -> list[str]:
    return attest.objections(project, findings.read(project).checks)


def test_a_boards_evidence_counts_when_the_board_signed_it(tmp_path: Path) -> None:
    """Signed by the pinned key of its class there is nothing to object to."""
    board = Publisher()
    project = _project(tmp_path, pi5=board)
    _checked(project, PI, RunnerClass.PI5)
    attest.attest(project, [PI], RunnerClass.PI5, board.sign)
    assert _objections(project) == []


def test_evidence_of_no_board_needs_no_board(tmp_path: Path) -> None:
    """The host's own checks, an emulator's, and a board's stand-in are this job's to sign."""
    project = _project(tmp_path)
    _checked(project, PI, RunnerClass.HOST)
    _checked(project, PI, RunnerClass.EMULATED)
    _checked(project, LARGE, RunnerClass.NVLINK, stand_in="gloo on 2 CPU ranks")
    assert _objections(project) == []


@pytest.mark.parametrize(
    ("pinned", "signs", "changed", "says"),
    [
        pytest.param(False, True, False, "no key is pinned for runner class pi5", id="nobody pinned"),
        pytest.param(True, False, False, "not signed by the machine that made it", id="unsigned"),
        pytest.param(True, None, False, "which is not pinned", id="a stranger"),
        pytest.param(True, True, True, "is not what was signed", id="changed afterwards"),
    ],
)
def test_a_boards_evidence_does_not_count_otherwise(
    tmp_path: Path, pinned: bool, signs: bool | None, changed: bool, says: str
) -> None:
    """Unsigned, signed by another key, or changed after signing, it is objected to by name."""
    board = Publisher()
    project = _project(tmp_path, **({"pi5": board} if pinned else {}))
    _checked(project, PI, RunnerClass.PI5)
    if signs is not False:
        attest.attest(project, [PI], RunnerClass.PI5, board.sign if signs else Publisher().sign)
    if changed:
        _checked(project, PI, RunnerClass.PI5, engine={"name": "another"})
    (objection,) = _objections(project)
    assert objection.startswith("tiny-edge-arm64 on pi5: ")
    assert says in objection


def test_a_variant_is_signed_with_its_tuned_kin(tmp_path: Path) -> None:
    """What was built beside it is signed too, and must have been checked."""
    board, kin = Publisher(), Variant(PI.tier, PI.target, "lookup")
    project = _project(tmp_path, pi5=board)
    project.variant(kin).mkdir(parents=True)
    _checked(project, PI, RunnerClass.PI5)
    with pytest.raises(StageError, match=r"tiny-edge-arm64\+lookup has not been checked on pi5"):
        attest.attest(project, [PI], RunnerClass.PI5, board.sign)
    _checked(project, kin, RunnerClass.PI5)
    assert attest.attest(project, [PI], RunnerClass.PI5, board.sign) == [PI, kin]
    assert _objections(project) == []


def test_only_what_was_checked_can_be_signed(tmp_path: Path) -> None:
    """Without evidence there is nothing to attest, and the error says how to make it."""
    with pytest.raises(StageError, match="has not been checked on pi5") as e:
        attest.attest(_project(tmp_path), [PI], RunnerClass.PI5, Publisher().sign)
    assert e.value.hint == "edge-release check tiny-edge-arm64 --runner pi5"


def test_a_board_signed_elsewhere_is_not_signed_again(tmp_path: Path) -> None:
    """This job never puts its own name under a board's evidence."""
    project = _project(tmp_path, pi5=Publisher())
    found = _checked(project, PI, RunnerClass.PI5)
    (check,) = findings.read(project).checks
    assert check.evidence == found
    with pytest.raises(TrustError) as refused:
        attest._bundle(project, check, Publisher().sign, Publisher().opener)
    assert refused.value.refusal is Refusal.UNSIGNED


def test_own_signatures_are_kept_while_they_fit(tmp_path: Path) -> None:
    """A check that did not change keeps its signature, so signing twice gives one manifest; a new one is signed anew."""
    project, own = _project(tmp_path), Publisher()
    _checked(project, PI, RunnerClass.HOST)
    (check,) = findings.read(project).checks
    first = attest._bundle(project, check, own.sign, own.opener)
    assert attest._bundle(project, check, own.sign, own.opener) == first
    _checked(project, PI, RunnerClass.HOST, engine={"name": "another"})
    (check,) = findings.read(project).checks
    again = project.attestation(PI, RunnerClass.HOST)
    assert attest._bundle(project, check, own.sign, own.opener) != first
    assert attestation.parse(own.opener(again.read_bytes()).payload).evidence == check.evidence
