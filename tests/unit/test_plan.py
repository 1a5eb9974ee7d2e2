"""The jobs of the workflow follow from dvc.yaml."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.catalog.names import GGUF_TIERS, VARIANTS, RunnerClass, Target
from pipeline.errors import CatalogError
from pipeline.stages import plan
from pipeline.stages.plan import Kind
from tests.support import projects

ROOT = Path(__file__).parents[2]
OURS = plan.plan(plan.parse((ROOT / "dvc.yaml").read_text(), "dvc.yaml"))
SMALL = """
stages:
  teacher: {cmd: edge-release teacher, outs: [build/teacher]}
  quantize:
    matrix: {tier: [tiny-edge], target: [arm64, x86_64]}
    cmd: edge-release quantize --tier ${item.tier} --target ${item.target}
    outs: ['build/variants/${item.tier}-${item.target}': {cache: true}]
  runtime:
    matrix: {target: [arm64]}
    cmd: edge-release runtime --target ${item.target}
    outs: ['build/runtimes/${item.target}']
  check:
    matrix: {target: [arm64, x86_64]}
    cmd: edge-release check tiny-edge-${item.target} --runner host
    outs: ['build/evidence/host/tiny-edge-${item.target}']
"""


def subjects(made: plan.Plan, kind: Kind) -> dict[str, tuple[str, ...]]:
    return {job.name: job.subject for job in made.jobs if job.kind is kind}


def test_a_small_pipeline_is_planned_whole() -> None:
    """A tier's variants are one build, a target's programs another; checks go to the machine of their target."""
    made = plan.plan(plan.parse(SMALL, "dvc.yaml"))
    assert subjects(made, Kind.BUILD) == {
        "tiny-edge": ("quantize@tiny-edge-arm64", "quantize@tiny-edge-x86_64"),
        "runtime-arm64": ("runtime@arm64",),
    }
    assert subjects(made, Kind.ARM64) == {"arm64": ("tiny-edge-arm64",)}
    assert subjects(made, Kind.HOST) == {"x86_64": ("tiny-edge-x86_64",)}
    assert made.parts == ["quantize@tiny-edge-arm64", "quantize@tiny-edge-x86_64", "runtime@arm64"]
    assert made.checked == ["check@arm64", "check@x86_64"]


def test_every_variant_is_built_and_checked_once_on_a_host() -> None:
    """Shards are built once for all; a host checks each variant in one job, an emulator foreign GGUF files besides."""
    built = [name for job in OURS.jobs if job.kind is Kind.BUILD for name in job.subject]
    shards, programs = 1, len(Target)
    assert len(built) == len(set(built)) == len(GGUF_TIERS) * len(Target) + shards + programs
    hosts = [v for job in OURS.jobs if job.kind in {Kind.HOST, Kind.ARM64, Kind.LARGE} for v in job.subject]
    assert sorted(hosts) == sorted(v.name for v in VARIANTS)
    emulated = [v for names in subjects(OURS, Kind.EMULATED).values() for v in names]
    assert len(emulated) == len(GGUF_TIERS) * (len(Target) - 1)


def test_boards_prove_what_is_theirs() -> None:
    """A board checks the GGUF files of its target; an NVLink machine the large tier, whichever its target."""
    assert subjects(OURS, Kind.PI5) == {"pi5": ("tiny-edge-arm64", "mid-tier-arm64")}
    assert subjects(OURS, Kind.RISCV) == {"riscv": ("tiny-edge-riscv64", "mid-tier-riscv64")}
    assert subjects(OURS, Kind.NVLINK) == {"nvlink": tuple(f"large-{target}" for target in Target)}
    assert {RunnerClass(kind) for kind in (Kind.PI5, Kind.RISCV, Kind.NVLINK)} <= set(RunnerClass)


@pytest.mark.parametrize(
    "cmd",
    ["edge-release check", "edge-release check tiny-edge-mips --runner host", "edge-release check tiny-edge-arm64"],
)
def test_a_check_of_another_form_is_refused(cmd: str) -> None:
    """A check no job could make is an error that names the stage, not a job that is left out."""
    text = f"stages:\n  odd: {{cmd: {cmd}, outs: [build/x]}}\n"
    with pytest.raises(CatalogError, match="stage odd"):
        plan.plan(plan.parse(text, "dvc.yaml"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    projects.project(tmp_path, {"embedded": {"path": "x", "digest": f"sha256:{'0' * 64}"}})
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    return tmp_path


def test_the_workflow_gets_a_line_for_each_output(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--github writes name=value lines, matrices as JSON; people see a table of jobs and machines."""
    assert cli.main(["plan", "--github"]) == 0
    written = dict(line.split("=", 1) for line in (project / "output").read_text().splitlines())
    assert written == OURS.outputs()
    assert {entry["name"] for entry in json.loads(written["certify"])} == {"tiny-edge", "mid-tier"}
    assert "self-hosted, pi5" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "name", "code"), [("tag", "v9", 2), ("tag", "v0.1.0", 0), ("branch", "v9", 0)])
def test_a_tag_must_be_the_release_s(
    project: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, code: int
) -> None:
    """A run for a tag ends at once where params.yaml releases another; a branch may have any name."""
    monkeypatch.setenv("GITHUB_REF_TYPE", kind)
    monkeypatch.setenv("GITHUB_REF_NAME", name)
    assert cli.main(["plan", "--github"]) == code
    assert (project / "output").exists() is (code == 0)


def test_without_a_workflow_there_is_nothing_to_write_to(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--github outside a workflow is an error that says so."""
    monkeypatch.delenv("GITHUB_OUTPUT")
    assert cli.main(["plan", "--github"]) == 2
    assert "GITHUB_OUTPUT" in capsys.readouterr().err
