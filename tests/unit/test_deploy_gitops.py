"""Releases in a GitOps repository: one commit each, the same bytes, nothing of others touched, in real git repositories."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.catalog.names import Channel
from pipeline.cli import main
from pipeline.deploy import base, gitops
from pipeline.deploy.gitops import Repository
from pipeline.deploy.job import Job
from pipeline.deploy.render import Wanted, listed
from pipeline.errors import CatalogError, ConflictError, Refusal
from pipeline.ports.kube import Object
from pipeline.registry import channels, layout
from pipeline.registry.folder import FolderStore
from pipeline.registry.publish import publish
from tests.support.deploys import BASE, FILES, IMAGES, TRUST, Line, measure, settings
from tests.support.releases import LINE, Publisher


def git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *args], check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration of this machine's user."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A bare repository with a commit of somebody else's."""
    bare, work = tmp_path / "fleet.git", tmp_path / "work"
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    git(tmp_path, "clone", "--quiet", str(bare), str(work))
    (work / "README").write_text("others'\n")
    git(work, "add", "README")
    git(work, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=first")
    git(work, "push", "--quiet", "origin", "HEAD:refs/heads/main")
    return bare


def settings_map(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "n"}, "data": data}


def put(repository: Repository, *documents: Object) -> gitops.Committed:
    return gitops.commit(repository, lambda _: (list(documents), "Release\n"))


def subjects(root: Path) -> list[str]:
    return git(root, "log", "--format=%s").splitlines()


@pytest.mark.parametrize("kind", ["bare", "work tree"])
def test_a_release_is_one_commit(fleet: Path, kind: str) -> None:
    """The same once more is none; what is read back is what was written; the rest of the repository stays."""
    source = fleet if kind == "bare" else fleet.parent / "work"
    repository = Repository(str(source), "clusters/shop")
    done = put(repository, settings_map("a"), settings_map("b", k="v"))
    assert done.commit
    assert put(repository, settings_map("a"), settings_map("b", k="v")).commit is None
    assert subjects(source) == ["Release", "first"]
    assert git(source, "show", "HEAD:README") == "others'\n"
    with repository.opened() as root:
        assert gitops.read(root, repository) == [settings_map("a"), settings_map("b", k="v")]
    listing = yaml.safe_load(git(source, "show", "HEAD:clusters/shop/kustomization.yaml"))
    assert listing["resources"] == ["configmap-a.yaml", "configmap-b.yaml"]


def test_what_is_not_rendered_any_more_goes(fleet: Path) -> None:
    """Its file is deleted by the same commit, and the objects before are known."""
    repository = Repository(str(fleet))
    put(repository, settings_map("a"), settings_map("b"))
    done = put(repository, settings_map("a", k="v"))
    assert [d["metadata"]["name"] for d in done.before] == ["a", "b"]
    assert [c.verb for c in gitops.changes(done.before, done.after)] == ["change", "delete"]
    assert "configmap-b.yaml" not in git(fleet, "ls-tree", "--name-only", "HEAD", "edge-release/")


def test_a_users_own_changes_are_not_committed(fleet: Path) -> None:
    """What is staged or lies about in the work tree beside the folder stays as it is."""
    work = fleet.parent / "work"
    (work / "README").write_text("changed\n")
    (work / "new").write_text("staged\n")
    git(work, "add", "new")
    put(Repository(str(work)), settings_map("a"))
    assert git(work, "show", "HEAD:README") == "others'\n"
    assert git(work, "status", "--porcelain").splitlines() == [" M README", "A  new"]


def test_who_pushes_meanwhile_is_not_overwritten(fleet: Path) -> None:
    """The commit is made anew on what came; where that never ends, it ends in an error."""
    work, count = fleet.parent / "work", 0

    def edit(_before: list[Object], *, times: int) -> tuple[list[Object], str]:
        nonlocal count
        count += 1
        if count <= times:
            git(work, "pull", "--quiet", "--ff-only", "origin", "main")
            (work / "README").write_text(f"{count} of {times}\n")
            git(
                work,
                "-c",
                "user.name=a",
                "-c",
                "user.email=a@b",
                "commit",
                "--quiet",
                "--all",
                f"--message=theirs {count}",
            )
            git(work, "push", "--quiet", "origin", "HEAD:refs/heads/main")
        return [settings_map("a", k=f"{count} of {times}")], "Release\n"

    repository = Repository(str(fleet))
    assert gitops.commit(repository, lambda before: edit(before, times=1)).commit
    assert subjects(fleet) == ["Release", "theirs 1", "first"]
    count = 0
    with pytest.raises(ConflictError):
        gitops.commit(repository, lambda before: edit(before, times=9))
    assert subjects(fleet)[0] == "theirs 3"


def test_a_commit_alone_drops_no_release(fleet: Path, tmp_path: Path) -> None:
    """Servers are on what was rolled out last, whatever was committed since; gateways know it until a rollout."""
    line, repository = Line(tmp_path), Repository(str(fleet))

    def job(version: int) -> Job:
        wanted = Wanted(line.accepted(version), TRUST, settings())
        return Job(wanted.settings, lambda: wanted, documents, lambda _: [], lambda _: None)

    def versions(found: gitops.Committed) -> list[int]:
        return [r.version for r in listed(found.after)]

    documents = base.load(BASE, settings().components)
    deployed = [job(version).committed(repository, []).after for version in (4, 5, 6, 7)][-1]
    alone = [versions(job(version).committed(repository)) for version in (8, 9, 10, 11, 12)]
    assert alone[-1] == [12, 11, 10, 9, 8, 7, 6, 5]
    with pytest.raises(ConflictError) as caught:
        job(13).committed(repository)
    assert "--rollout" in caught.value.hint
    assert versions(job(12).committed(repository)) == alone[-1], "the same once more is no further one"
    assert versions(job(13).committed(repository, deployed)) == [13, 7, 6]


def test_a_release_is_taken_back_by_a_commit(fleet: Path) -> None:
    """Not by rewriting history."""
    repository = Repository(str(fleet))
    before = put(repository, settings_map("a")).after
    put(repository, settings_map("a", k="v"), settings_map("b"))
    assert gitops.restore(repository, before, "node-2 is in CrashLoopBackOff")
    assert subjects(fleet) == ["Roll back", "Release", "Release", "first"]
    assert "CrashLoopBackOff" in git(fleet, "log", "-1", "--format=%b")
    with repository.opened() as root:
        assert gitops.read(root, repository) == before


@pytest.mark.parametrize("folder", ["", ".", "/etc", "../other", "a/../../b", ".git/hooks"])
def test_a_folder_outside_is_refused(folder: str) -> None:
    """Nothing is written beside the repository, or into git's own files."""
    with pytest.raises(CatalogError):
        Repository("x", folder)


class Shop:
    """A registry with a release line, and `edge-release deploy` for it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.publisher = folder, Publisher()
        pem = self.publisher.pair.public_pem.decode()
        (folder / "trust.yaml").write_text(yaml.safe_dump({"line": LINE, "public_keys": [pem]}))
        config = {"registry": "s3://models/releases", "images": IMAGES}
        (folder / "deploy.yaml").write_text(yaml.safe_dump(config))
        shutil.copytree(BASE, folder / "base")

    def publish(self, version: int) -> None:
        def dated(document: dict[str, Any]) -> None:
            measure(document)
            document["predicate"]["release"]["expires"] = (datetime.now(UTC) + timedelta(days=7)).isoformat()

        signed = self.publisher.release(self.folder / f"release-{version}", version, files=FILES, mutate=dated)
        publish(
            FolderStore(self.folder / "registry"), signed, channel=Channel.DEV, signer=self.publisher.sign,
            opener=self.publisher.opener, now=datetime.now(UTC),
        )  # fmt: skip

    def roll_back(self) -> None:
        channels.rollback(
            FolderStore(self.folder / "registry"), line=LINE, channel=Channel.DEV, signer=self.publisher.sign,
            opener=self.publisher.opener, now=datetime.now(UTC),
        )  # fmt: skip

    def moves(self) -> list[Path]:
        return sorted((self.folder / "registry" / layout.row(LINE, Channel.DEV)).iterdir())

    def forgetting(self, *options: str) -> int:
        """Deploy on a machine that has seen nothing."""
        (self.folder / "seen.json").unlink(missing_ok=True)
        return self.deploy(*options)

    def deploy(self, *options: str) -> int:
        return main(
            [
                "deploy", "--config", str(self.folder / "deploy.yaml"), "--base", str(self.folder / "base"),
                "--registry", str(self.folder / "registry"), "--trust", str(self.folder / "trust.yaml"),
                "--state", str(self.folder / "seen.json"), *options,
            ]
        )  # fmt: skip


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    made = Shop(tmp_path)
    made.publish(1)
    return made


def test_the_command_commits_releases(shop: Shop, fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is one commit that says what it is and instead of what; a dry run shows the diff and commits nothing."""
    assert shop.deploy("--gitops", str(fleet)) == 0
    shop.publish(2)
    assert shop.deploy("--gitops", str(fleet), "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "+        - --release=2" in shown
    assert "+++ b/StatefulSet/edge-release/node" in shown
    assert shop.deploy("--gitops", str(fleet), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {c["name"] for c in told["changes"]} == {"admitted", "releases", "node", "large"}
    assert shop.deploy("--gitops", str(fleet)) == 0
    assert "nothing changed" in capsys.readouterr().out
    assert subjects(fleet) == ["Release demo 2 (v2)", "Release demo 1 (v1)", "first"]
    assert git(fleet, "log", "-1", "--format=%b").splitlines()[1].startswith("instead of 1, manifest sha256:")


def test_what_does_not_verify_is_not_committed(shop: Shop, fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a release of somebody else nor an older one than was deployed."""
    other = Shop.__new__(Shop)
    other.folder, other.publisher = shop.folder, Publisher()
    (shop.folder / "other").mkdir()
    shop.publish(2)
    assert shop.deploy("--gitops", str(fleet)) == 0
    assert shop.deploy("--gitops", str(fleet), "--release", "1") == Refusal.ROLLBACK
    pem = other.publisher.pair.public_pem.decode()
    (shop.folder / "trust.yaml").write_text(yaml.safe_dump({"line": LINE, "public_keys": [pem]}))
    assert shop.deploy("--gitops", str(fleet)) == Refusal.WRONG_SIGNER
    assert subjects(fleet) == ["Release demo 2 (v2)", "first"]


def test_a_registry_leads_nobody_back(shop: Shop, fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a machine that remembers nothing, what is committed is the memory; an old rollback played again is none."""
    for version, back in ((2, True), (3, False)):
        shop.publish(version)
        if back:
            shop.roll_back()
    assert shop.forgetting("--gitops", str(fleet)) == 0
    shop.moves()[-1].unlink()
    for options in ((), ("--dry-run",)):
        assert shop.forgetting("--gitops", str(fleet), *options) == Refusal.ROLLBACK
        assert "release 1 is older than 3, which is deployed" in capsys.readouterr().err
    assert subjects(fleet) == ["Release demo 3 (v3)", "first"]


@pytest.mark.parametrize("meant", ["--release=1", "--allow-rollback", "a rollback of the channel"])
def test_who_means_to_go_back_says_so(shop: Shop, fleet: Path, meant: str) -> None:
    """By an option, or by a signed move of the channel away from what is committed."""
    shop.publish(2)
    assert shop.forgetting("--gitops", str(fleet)) == 0
    if meant == "--allow-rollback":
        shop.moves()[-1].unlink()
    elif meant != "--release=1":
        shop.roll_back()
    assert shop.forgetting("--gitops", str(fleet), *([meant] if meant.startswith("--") else [])) == 0
    assert subjects(fleet) == ["Release demo 1 (v1)", "Release demo 2 (v2)", "first"]


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ([], "--gitops REPO or --apply"),
        (["--apply", "--gitops", "x"], "--gitops REPO or --apply"),
        (["--gitops", "{fleet}", "--rollout"], "door"),
        (["--gitops", "{fleet}", "--base", "nowhere"], "--base"),
    ],
    ids=["nowhere", "both", "no gateway is named", "no base"],
)
def test_what_is_missing_is_said(
    shop: Shop, fleet: Path, capsys: pytest.CaptureFixture[str], options: list[str], hint: str
) -> None:
    """Wrong usage ends with status 2 and says what to give."""
    assert shop.deploy(*(o.format(fleet=fleet) for o in options)) == 2
    assert hint in capsys.readouterr().err
