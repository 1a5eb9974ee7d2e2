"""`model.yml` as it is, on this machine: its run lines in order, in fresh clones of a small project, from plan to publish;
then `deploy.yml`.

The private Sigstore instance stands in for GitHub's identities and for the public one. The run-cache and the registry
are folders that travel as artifacts, and, where a real S3 server is at hand, on that.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from pipeline.catalog.names import VARIANTS, Target
from pipeline.errors import Refusal
from pipeline.ports import qemu
from pipeline.stages import plan
from tests.support import built, projects
from tests.support.actions import REPOSITORY, REPOSITORY_ID, Event, Run, Workflow
from tests.support.sigstore.oidc import github_claims
from tests.support.sigstore_instance import SigstoreInstance

S3 = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_TEST_BUCKET")
NO_S3 = [name for name in S3 if not os.environ.get(name)]
WORKFLOW = Workflow.load(projects.REPOSITORY / ".github/workflows/model.yml")
DEPLOY = Workflow.load(projects.REPOSITORY / ".github/workflows/deploy.yml")
TAG = "v0.1.0"
EMULATORS = all(qemu.find(target) for target in (Target.ARM64, Target.RISCV64))
# What this machine is instead of the machine a job asks for: its programs are brought along.
STAND_INS = {"check-arm64": ["gguf-x86_64"]}


def _missing() -> str:
    return built.missing() or ("" if shutil.which("make") else "make is not installed: apt-get install make")


pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(bool(_missing()), reason=_missing()),
    pytest.mark.timeout(2400),
]


@dataclass(frozen=True)
class Released:
    """A finished run for a tag, the registry it published to, and the instance that signed."""

    run: Run
    registry: str
    instance: SigstoreInstance
    home: Path

    def consumer(self, *argv: str, repository: str = REPOSITORY, status: int = 0) -> str:
        """Run a command as somebody else, who trusts releases of a repository; return what it printed."""
        home = self.home / f"consumer-{repository.replace('/', '-')}"
        home.mkdir(exist_ok=True)
        (home / "root.json").write_text(json.dumps(self.instance.trusted_root()))
        trust = ["--repository", repository, "--repository-id", REPOSITORY_ID, "--trusted-root", "root.json"]
        (home / "trust.yaml").write_text(self._command(home, "trust", "--line", "own", *trust))
        return self._command(home, *argv, "--registry", self.registry, "--trust", "trust.yaml", status=status)

    @staticmethod
    def _command(home: Path, *argv: str, status: int = 0) -> str:
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("GITHUB_", "EDGE_RELEASE_"))}
        env = {**plain, "XDG_CONFIG_HOME": str(home / "config"), "XDG_STATE_HOME": str(home / "state")}
        code = "import sys; from pipeline.cli import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", code, *argv], cwd=home, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status == 0 else done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagged commit of a project that makes releases of a small model, with this repository's workflow's tools."""
    root = tmp_path_factory.mktemp("project")
    projects.release_project(root)
    for name in ("Makefile", "pyproject.toml", "README.md", "LICENSE", "requirements", "manifests/k8s"):
        source = projects.REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, root / name, dirs_exist_ok=True)
        else:
            shutil.copy(source, root / name)
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["release"]["tag"] = TAG
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    who = ["-c", "user.name=t", "-c", "user.email=t@t.example"]
    for argv in (
        ["init", "--initial-branch=main"],
        ["add", "--all"],
        [*who, "commit", "-m", "a project"],
        ["tag", TAG],
    ):
        subprocess.run(["git", *argv], cwd=root, check=True, capture_output=True)
    return root


@pytest.fixture(
    scope="module",
    params=[
        "artifacts",
        pytest.param(
            "s3",
            marks=[
                pytest.mark.s3,
                pytest.mark.skipif(bool(NO_S3), reason=f"not set: {', '.join(NO_S3)}; set: pytest -m s3"),
            ],
        ),
    ],
)
def released(
    request: pytest.FixtureRequest, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Released]:
    """A run for a pushed tag, once with nothing set up and once with S3."""
    home = tmp_path_factory.mktemp("run")
    with SigstoreInstance(home / "sigstore") as instance:
        instance.claims = github_claims(
            repository=REPOSITORY, repository_id=REPOSITORY_ID, workflow=WORKFLOW.file, ref=f"refs/tags/{TAG}"
        )
        config = home / "client_trust_config.json"
        config.write_text(json.dumps(instance.client_config()))
        variables, given, registry = _services(request.param, home)
        run = Run(
            WORKFLOW,
            Event("push", f"refs/tags/{TAG}"),
            project,
            home,
            variables,
            given,
            identity=instance.actions_environment(),
            surroundings={"EDGE_RELEASE_SIGSTORE_CONFIG": str(config), "NO_PROXY": "127.0.0.1"},
            stand_ins=STAND_INS,
        )
        run.execute()
        print("\n".join(run.executed))
        yield Released(run, registry, instance, home)


def _services(kind: str, home: Path) -> tuple[dict[str, str], dict[str, str], str]:
    """Return variables, secrets and the registry."""
    if kind == "artifacts":
        return {}, {}, str(home / "artifacts/registry")
    base = f"s3://{os.environ['S3_TEST_BUCKET']}/workflow-{secrets.token_hex(8)}"
    variables = {
        "DVC_REMOTE": f"{base}/cache",
        "REGISTRY": f"{base}/registry",
        "S3_ENDPOINT": os.environ["AWS_ENDPOINT_URL_S3"],
        "S3_REGION": os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
    }
    key, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    given = {
        f"{who}_{what}": v
        for who in ("CACHE", "REGISTRY")
        for what, v in (("ACCESS_KEY_ID", key), ("SECRET_ACCESS_KEY", secret))
    }
    return variables, given, variables["REGISTRY"]


def test_a_tag_runs_every_job_but_boards_and_comment(released: Released) -> None:
    """From plan to publish each job succeeds; no board is attached, and there is no pull request to comment on."""
    ended = {name: end.result for name, end in released.run.ended.items()}
    skipped = {"check-pi5", "check-riscv", "check-nvlink", "comment", "move"}
    assert ended == {name: "skipped" if name in skipped else "success" for name in WORKFLOW.jobs}


def test_a_consumer_verifies_what_the_workflow_published(released: Released, tmp_path: Path) -> None:
    """Somebody who pins the workflow of the repository verifies the release and pulls a variant, offline."""
    manifest = json.loads(released.consumer("show", "--json"))["predicate"]
    assert (manifest["release"]["tag"], manifest["source"]["modified"]) == (TAG, [])
    assert [v["name"] for v in manifest["variants"]] == [v.name for v in VARIANTS]
    found = {(v["name"], e["runner"]) for v in manifest["variants"] for e in v["evidence"]}
    assert {(v.name, "host") for v in VARIANTS} <= found
    assert (("tiny-edge-riscv64", "emulated") in found) is EMULATORS
    assert json.loads(released.consumer("verify", "--json"))["verified"]
    released.consumer("verify", "--require-evidence", "host")
    released.consumer("pull", "tiny-edge-arm64", "--into", str(tmp_path))
    assert (tmp_path / "current/model.gguf").exists()


def test_a_run_for_the_tag_promotes_the_release(released: Released, project: Path) -> None:
    """By hand, for the tag, the workflow points a channel to the release, and its consumers follow."""
    moving = Event(
        "workflow_dispatch", f"refs/tags/{TAG}", inputs={"move": "promote", "channel": "canary", "version": "1"}
    )
    variables = {**released.run.variables, "REGISTRY": released.registry}
    run = replace(released.run, event=moving, home=released.home / "moving", variables=variables, ended={}, executed=[])
    run.execute()
    assert {name for name, end in run.ended.items() if end.result != "skipped"} == {"move"}
    assert run.ended["move"].result == "success"
    assert json.loads(released.consumer("releases", "--json"))["channels"] == {"canary": 1, "dev": 1}


def test_the_release_is_committed_to_the_fleet(released: Released, tmp_path: Path) -> None:
    """By hand, `deploy.yml` makes one commit of the channel's release, verified by whom its workflow's consumers trust."""
    fleet = tmp_path / "fleet.git"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(fleet)], check=True)
    variables = {**released.run.variables, "REGISTRY": released.registry, "GITOPS_REPOSITORY": str(fleet)}
    event = Event("workflow_dispatch", f"refs/tags/{TAG}", inputs={"channel": "dev"})
    for attempt in ("first", "again"):
        run = replace(
            released.run, workflow=DEPLOY, event=event, home=released.home / f"deploying-{attempt}", variables=variables,
            ended={}, executed=[],
        )  # fmt: skip
        run.execute()
        assert {name: end.result for name, end in run.ended.items()} == {"commit": "success", "rollout": "skipped"}
    log = subprocess.run(["git", "-C", str(fleet), "log", "--format=%s"], capture_output=True, text=True, check=True)
    assert log.stdout.splitlines() == [f"Release own 1 ({TAG})"]


def test_a_fork_of_the_same_name_is_refused(released: Released) -> None:
    """Whoever pins another repository refuses the release."""
    refused = released.consumer("verify", repository="mallory/edge", status=Refusal.WRONG_SIGNER)
    assert "not pinned" in refused


def test_one_job_wrote_the_lock_of_all_stages(released: Released, project: Path) -> None:
    """The artifact dvc.lock has every stage, with the evidence that other jobs made."""
    lock = yaml.safe_load((released.run.artifacts / "dvc.lock/dvc.lock").read_text())["stages"]
    stages = plan.stages(plan.parse((project / "dvc.yaml").read_text(), "dvc.yaml"))
    assert sorted(lock) == sorted(stage.name for stage in stages)


def test_checks_ran_where_the_plan_says(released: Released) -> None:
    """Each check is one call in a job of its own; only the gate's job runs what is left of dvc.yaml."""
    lines = [line for line in released.run.executed if re.search(r": edge-release (check|certify)", line)]
    assert len(lines) == 2 + 1 + 1 + 4 + 2


def test_provenance_names_the_workflow(released: Released) -> None:
    """The builder in the provenance is the workflow at the tag."""
    provenance = json.loads((released.run.artifacts / "release/release/provenance.json").read_bytes())
    builder = provenance["predicate"]["runDetails"]["builder"]["id"]
    assert builder == f"https://github.com/{REPOSITORY}/.github/workflows/{WORKFLOW.file}@refs/tags/{TAG}"


def test_only_the_last_job_had_an_identity(released: Released) -> None:
    """The instance was asked for tokens by the job that signs: one for each statement, and one a command."""
    assert released.instance.seen.count("GET /actions/token") >= len(VARIANTS)
    jobs = [name for name, job in WORKFLOW.jobs.items() if job["permissions"].get("id-token")]
    assert jobs == ["move", "sign"]
