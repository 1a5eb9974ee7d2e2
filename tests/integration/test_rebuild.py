"""Rebuilding compares with what a clean folder gives: a real clone and a real dvc, on a project whose one stage copies.

That the whole pipeline gives its digests again is in test_pipeline.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalog.names import RunnerClass, Variant
from pipeline.errors import StageError, ToolError
from pipeline.manifest import dsse
from pipeline.manifest.encoding import canonical
from pipeline.stages.project import MANIFEST_FILE, Project
from pipeline.stages.rebuild import rebuild
from tests.support import projects
from tests.support.evidence import evidence
from tests.support.releases import Publisher, checked_files

MADE, COMMIT = "made.json", "c" * 40  # what the stage copies, and where it puts the commit
STAGES = f"""stages:
  manifest:
    cmd: >-
      mkdir -p build/release &&
      sed "s/{COMMIT}/$(git rev-parse HEAD)/" {MADE} > build/release/{MANIFEST_FILE}
    deps: [{MADE}]
    outs: [build/release]
"""


@dataclass(frozen=True)
class Built:
    """A project whose release was built, and what building it once more gives."""

    root: Path
    scratch: Path

    @property
    def project(self) -> Project:
        return Project.load(self.root)

    def first(self, *runners: RunnerClass, **files: bytes) -> None:
        commit = self._git("rev-parse", "HEAD").strip()
        self._write(self.root / "build/release" / MANIFEST_FILE, commit, runners, files)

    def again(self, *runners: RunnerClass, **files: bytes) -> None:
        self._write(self.root / MADE, COMMIT, runners, files)

    def commit(self, message: str) -> None:
        named = ["-c", "user.name=t", "-c", "user.email=t@t.example"]
        self._git("add", "params.yaml", "dvc.yaml", ".dvc/config", ".gitignore")
        self._git(*named, "commit", "--quiet", "--allow-empty", "--message", message)

    def run(self, command: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(command, shell=True, cwd=self.root, env={**os.environ, "PATH": path}, check=True)

    def _write(self, path: Path, commit: str, runners: Sequence[RunnerClass], files: dict[str, bytes]) -> None:
        def from_here(document: dict[str, Any]) -> None:
            document["predicate"]["source"]["commit"] = commit
            for entry in document["predicate"]["variants"]:
                found = [evidence(Variant.parse(entry["name"]), runner=runner).encode() for runner in runners]
                entry["evidence"] = [{**json.loads(e), "files": checked_files(entry)} for e in found]

        named = {f"large-x86_64/{name}.json": data for name, data in files.items()}
        release = Publisher().release(self.scratch, mutate=from_here, files=named)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(canonical(json.loads(dsse.unverified_payload(release.bundles.manifest))))

    def _git(self, *argv: str) -> str:
        done = subprocess.run(["git", *argv], cwd=self.root, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Built:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    root = tmp_path / "project"
    projects.project(root, {"embedded": {"path": "none", "digest": f"sha256:{'0' * 64}"}})
    for name in (".dvc/config", ".gitignore"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(projects.REPOSITORY / name, root / name)
    (root / "dvc.yaml").write_text(STAGES)
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main"], cwd=root, check=True)
    made = Built(root, tmp_path / "scratch")
    made.commit("a project")
    made.first()
    made.again()
    return made


def test_equal_digests_are_counted(built: Built, tmp_path: Path) -> None:
    """All digests of both manifests are compared, and the second build stays where it was asked for."""
    compared = rebuild(built.project, tmp_path / "clean")
    assert compared == (built.root / MADE).read_text().count('sha256":"') > 0
    made, again = (root / "build/release" / MANIFEST_FILE for root in (built.root, tmp_path / "clean"))
    assert made.read_bytes() == again.read_bytes()


def test_evidence_of_boards_is_not_looked_for_in_a_clean_folder(built: Built) -> None:
    """What boards found lies in no commit: a release that carries it is repeated without, and all else is compared."""
    stages = (RunnerClass.HOST, RunnerClass.EMULATED)
    built.first(*stages, RunnerClass.PI5, RunnerClass.NVLINK, RunnerClass.RISCV)
    built.again(*stages)
    assert rebuild(built.project) == (built.root / MADE).read_text().count('sha256":"')
    built.again(RunnerClass.EMULATED)
    with pytest.raises(StageError, match="digests differ") as caught:
        rebuild(built.project)
    assert "/evidence/host/" in caught.value.message
    assert "/evidence/emulated/" not in caught.value.message


def test_after_a_commit_the_manifest_can_be_brought_up_to_date(built: Built) -> None:
    """A commit alone makes no new manifest; what the hint says does, and then the release can be repeated."""
    built.run("dvc repro --quiet")
    built.commit("of something else")
    built.run("dvc repro --quiet")
    with pytest.raises(StageError, match="which is not checked out") as caught:
        rebuild(built.project)
    built.run(caught.value.hint.partition(": ")[2])
    assert rebuild(built.project)


DIFFERENT: dict[str, tuple[Callable[[Built], None], str]] = {
    "other content": (lambda b: b.again(config=b"{}"), "/subject/large-x86_64/config.json/digest/sha256"),
    "manifest tampered with": (lambda b: b.first(config=b"{}"), "files/config.json/sha256"),
    "a file more": (lambda b: b.again(more=b"{}"), "files/more.json/sha256"),
    "a file less": (lambda b: b.first(more=b"{}"), "files/more.json/sha256"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_digest_that_differs_is_named(case: str, built: Built) -> None:
    """What one build has and the other has not, or has otherwise, fails with its path in the manifest."""
    change, path = DIFFERENT[case]
    change(built)
    with pytest.raises(StageError, match=r"2 of \d+ digests differ") as caught:
        rebuild(built.project)
    assert path in caught.value.message


REFUSED: dict[str, tuple[Callable[[Built], object], type[Exception], str]] = {
    "nothing built": (lambda b: shutil.rmtree(b.root / "build"), StageError, "is missing"),
    "another commit": (lambda b: b.commit("later"), StageError, "which is not checked out"),
    "folder not empty": (lambda b: (b.root.parent / "clean/x").mkdir(parents=True), StageError, "is not empty"),
    "second build fails": (lambda b: (b.root / MADE).unlink(), ToolError, "dvc ended with status"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_repeated_is_refused(case: str, built: Built) -> None:
    """Without a release, its commit, a clean folder or a second build there is an error that says so."""
    prepare, error, message = REFUSED[case]
    prepare(built)
    with pytest.raises(error, match=message):
        rebuild(built.project, built.root.parent / "clean")
