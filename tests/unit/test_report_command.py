"""`edge-release report`: of what was built, of what was published, and of what the gate refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.catalog.names import VARIANTS, RunnerClass, Tier
from pipeline.manifest.evidence import Certificates
from pipeline.manifest.gate import MEASURED
from pipeline.manifest.statement import Manifest
from pipeline.ports import files, trust
from pipeline.registry import layout, record
from pipeline.registry.folder import FolderStore
from pipeline.stages.previous import Previous
from pipeline.stages.project import MANIFEST_FILE, Project
from tests.support import reports
from tests.support.projects import REPOSITORY
from tests.support.releases import Publisher

LINE = "edge-demo"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A clone of this project in which nothing was built, of a user who trusts nobody."""
    for name in ("CONFIG", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    for name in ("EDGE_RELEASE_REGISTRY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "project"
    (root / "models").mkdir(parents=True)
    for name in ("params.yaml", "models/tiny-edge.yaml", "models/mid-tier.yaml", "models/large.yaml"):
        (root / name).write_bytes((REPOSITORY / name).read_bytes())
    git = ["git", "-C", root, "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.chdir(root)
    return Project.load(root)


def _build(project: Project, manifest: Manifest) -> None:
    files.write(project.release / MANIFEST_FILE, manifest.encode())
    files.write(project.gate, manifest.predicate.gate.encode())


def _check(project: Project, manifest: Manifest) -> None:
    """Write what the checks, the certificates and the lookup of the previous release would have left."""
    for entry in manifest.predicate.variants:
        variant = next(v for v in VARIANTS if v.name == entry.name)
        for found in [*entry.evidence, *entry.missing]:
            files.write(project.evidence(variant, found.runner), found.encode())
        for measured in entry.measurements:
            files.write(project.measurement(variant, measured.runner), measured.encode())
            durations = reports.clocked(manifest)[variant.name, measured.runner]
            rows = {
                "time_to_first_token": durations.ttft_ms,
                "time_per_output_token": durations.per_token_ms,
                "inference": durations.inference_ms,
            }
            written = {"durations_ns": {name: [round(ms * 1e6) for ms in row] for name, row in rows.items()}}
            files.write(project.benchmark(variant, measured.runner), json.dumps(written).encode())
        if variant.tier is not Tier.LARGE:
            files.write(project.recipe_file(variant), b"base: Q4_K_M\n")
    for tier in (Tier.TINY_EDGE, Tier.MID_TIER):
        made = [v.certificate for v in manifest.predicate.variants if v.tier is tier and v.certificate]
        files.write(project.certificates(tier), Certificates(certificates=made).encode())
    files.write(project.previous, Previous().encode())


def _publish(project: Project, *manifests: Manifest) -> Publisher:
    """Publish releases in the project's registry, signed by one whom this user trusts; their files are not needed."""
    publisher = Publisher()
    store = FolderStore(project.root / project.params.release.registry)
    for manifest in manifests:
        bundles = publisher.bundles(json.loads(manifest.encode()))
        store.create(layout.release(LINE, manifest.release.version), record.encode(bundles))
    trust.pin_own_key(
        Path(os.environ["XDG_CONFIG_HOME"]) / f"edge-release/trust/{LINE}.yaml", LINE, publisher.pair.public_pem
    )
    return publisher


def _run(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> dict[str, Any]:
    assert cli.main(["report", "--json", *argv]) == code
    said = capsys.readouterr()
    found: dict[str, Any] = json.loads(said.err if code else said.out)
    return found


def _far(version: int, previous: Manifest | None = None) -> Manifest:
    """A release that stays valid."""
    from datetime import UTC, datetime

    return reports.manifest(version, previous, expires=datetime(2999, 1, 1, tzinfo=UTC))


def test_a_built_release_is_reported_without_a_registry(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """The first release needs nobody: both files are written below build/report, with the distributions."""
    first = reports.manifest(1)
    _check(project, first)
    _build(project, first)
    said = _run(capsys)
    assert (said["state"], said["version"], said["passed"], said["notes"]) == ("built", 1, True, [])
    assert "v0.1.0" in Path(said["html"]).read_text()
    assert Path(said["markdown"]) == Path("build/report/report.md")
    assert "no earlier release" in Path(said["markdown"]).read_text()


def test_the_gates_previous_release_is_fetched_and_verified(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the gate compared with is what the report compares with, files too."""
    first = reports.manifest(1)
    _publish(project, first)
    _build(project, reports.manifest(2, first))
    said = _run(capsys)
    assert (said["compared_with"], said["notes"]) == (1, [])
    assert "18 files differ" in Path(said["html"]).read_text()


def test_a_previous_release_out_of_reach_is_left_out_with_a_note(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty registry does not stop a report: the reason stands on the page and on standard error."""
    _build(project, reports.manifest(2, reports.manifest(1)))
    said = _run(capsys)
    assert said["compared_with"] is None
    assert said["notes"][0].startswith("Not compared with release 1: ")
    assert "Not compared with release 1" in Path(said["html"]).read_text()
    assert cli.main(["report"]) == 0
    out = capsys.readouterr()
    assert out.err.startswith("note: Not compared with release 1")
    assert out.out.startswith("edge-demo 2 (v0.2.0): Passed: open to dev, canary\n")


def test_what_the_gate_kept_of_the_previous_release_serves_offline(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures come from the lookup's file where the registry does not answer; files do not."""
    first = reports.manifest(1)
    _build(project, reports.manifest(2, first))
    files.write(project.previous, Previous(version=1, verdict=first.predicate.gate).encode())
    said = _run(capsys)
    assert said["compared_with"] == 1
    assert "its files were not" in said["notes"][0]


def test_a_tampered_previous_release_is_not_compared_with(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """A stranger's release in the registry is none: by default it is left out, asked for by name it is refused."""
    first = reports.manifest(1)
    _publish(project, first)
    stranger = Publisher().bundles(json.loads(first.encode()))
    path = project.root / "registry" / layout.release(LINE, 1)
    path.chmod(0o644)
    path.write_bytes(record.encode(stranger))
    _build(project, reports.manifest(2, first))
    assert "Not compared with release 1" in _run(capsys)["notes"][0]
    assert _run(capsys, "--previous", "1", code=21)["kind"] == "WRONG_SIGNER"


def test_a_published_release_is_verified_and_reported(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """By its version, with another one than the gate's to compare with, into files of one's choice."""
    first = _far(1)
    _publish(project, first, _far(2, first), _far(3))
    said = _run(capsys, "--release", "3", "--previous", "2", "--html", "r.html", "--markdown", "r.md")
    assert (said["state"], said["version"], said["compared_with"]) == ("published", 3, 2)
    assert "its signature and rules were verified" in Path("r.html").read_text()


def test_an_expired_release_is_refused_but_may_be_compared_with(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report of a release needs what every consumer needs; what came before only tells what was."""
    from datetime import UTC, datetime

    old = reports.manifest(1, expires=datetime(2000, 1, 1, tzinfo=UTC))
    _publish(project, old, _far(2, old))
    assert _run(capsys, "--release", "1", code=26)["kind"] == "EXPIRED"
    assert _run(capsys, "--release", "2")["compared_with"] == 1


def test_outside_a_project_policies_and_prices_are_not_known(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A consumer with a registry and a trust file gets a report without what stands in params.yaml, and is told."""
    _publish(project, _far(1))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    said = _run(capsys, "--registry", str(project.root / "registry"), "--release", "1")
    assert said["state"] == "published"
    assert "params.yaml" in said["notes"][0]
    assert "Memory bound" not in Path(said["html"]).read_text()


@pytest.mark.parametrize("stale", [pytest.param(False, id="no manifest"), pytest.param(True, id="an older manifest")])
def test_a_refused_gate_is_reported_from_the_evidence(
    project: Project, capsys: pytest.CaptureFixture[str], stale: bool
) -> None:
    """The reasons are what a pull request needs; a manifest that an earlier build left behind is not what is reported."""
    found = reports.manifest(1)
    first = found.predicate.variants[0]
    poor = first.evidence[0].model_copy(
        update={"quality": first.evidence[0].quality.model_copy(update={"exact_match": 0.1})}
    )
    worse = first.model_copy(update={"evidence": [poor, *first.evidence[1:]]})
    _check(project, reports.changed(found, variants=[worse, *found.predicate.variants[1:]]))
    if stale:
        _build(project, found)
        project.gate.unlink()
    said = _run(capsys)
    assert (said["state"], said["passed"], said["version"]) == ("evidence", False, project.params.release.version)
    assert "tiny-edge-arm64 on host: exact match is 0.1, below 0.9" in said["reasons"]
    assert any("no key is pinned for runner class pi5" in reason for reason in said["reasons"])
    written = Path(said["markdown"]).read_text()
    assert "Refused: " in written
    assert "exact match is 0.1, below 0.9" in written
    assert not project.gate.exists()


def test_a_boards_evidence_of_the_release_before_is_a_reason(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a board's check left behind when the files were other ones stops the release, and says what to do."""
    last = reports.manifest(1)
    _check(project, reports.manifest(2, last))
    said = (
        "tiny-edge-arm64 on pi5: its evidence is of other files than are released: check it there again, or remove it"
    )
    assert said not in _run(capsys)["reasons"]
    entry = last.variant("tiny-edge-arm64")
    (old,) = (e for e in entry.evidence if e.runner is RunnerClass.PI5)
    files.write(project.evidence(entry.variant, old.runner), old.encode())
    assert said in _run(capsys)["reasons"]


def test_checks_that_were_not_certified_are_a_reason(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the build stopped before the certificates, the report says so instead of failing."""
    _check(project, reports.manifest(1))
    project.certificates(Tier.MID_TIER).unlink()
    assert "mid-tier: its files were not compared on the targets" in _run(capsys)["reasons"]


def test_nothing_built_is_an_error_that_says_what_to_do(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty project has no report, and learns where one comes from."""
    said = _run(capsys, code=5)
    assert "nothing has been built or checked" in said["error"]
    assert "--channel" in said["hint"]


def test_durations_of_another_kind_are_an_error(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """A benchmark file that no check wrote is named."""
    first = reports.manifest(1)
    _build(project, first)
    files.write(project.benchmark(VARIANTS[0], next(iter(MEASURED))), b"{}")
    assert "is not what a check writes" in _run(capsys, code=5)["error"]


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_the_base_install_is_told_what_to_install(library: str, tmp_path: Path) -> None:
    """Without the libraries that write and draw, the error names one and the extra that has it, before anything is read."""
    code = f"import sys; sys.modules[{library!r}] = None; from pipeline.cli import main; sys.exit(main(['report']))"
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert f"a report needs {library}" in done.stderr
    assert "edge-release[build]" in done.stderr
