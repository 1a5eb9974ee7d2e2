"""The workflows keep their rules: pinned actions, least permissions, nothing of a stranger's on our machines.

tests/integration/test_workflows.py runs them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import cli
from pipeline.stages import plan
from tests.support.actions import JOB_KEYS, STEP_KEYS, Ended, Event, Run, Workflow, needed
from tests.support.expressions import Scope, as_text, expressions

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / ".github/workflows").glob("*.yml"))
WORKFLOWS = {path.name: Workflow.load(path) for path in PATHS}
JOBS = [(file, name) for file, workflow in WORKFLOWS.items() for name in workflow.jobs]
PLAN = plan.plan(plan.parse((ROOT / "dvc.yaml").read_text(), "dvc.yaml"))
# What an expression may be in a line that a shell reads: nothing. Elsewhere only these contexts are known.
CONTEXTS = {"env", "github", "inputs", "matrix", "needs", "secrets", "steps", "vars"}
SIGNERS = {("model.yml", "sign"), ("model.yml", "move"), ("service.yml", "sign")}
MODEL = WORKFLOWS["model.yml"]
OWN = "acme/edge"
PUSH, TAG = Event("push", "refs/heads/main"), Event("push", "refs/tags/v1.2.3")
PULL, FORK = (Event("pull_request", "refs/pull/7/merge", head) for head in (OWN, "mallory/edge"))
BUILD = {"move": "no", "channel": "canary", "version": ""}
CANARY = "a-secret-of-ours"
EVERYTHING = {"DVC_REMOTE": "s3://ours/cache", "REGISTRY": "s3://ours/registry"}
EVERYTHING |= {f"{board}_RUNNERS": "true" for board in ("PI5", "RISCV", "NVLINK")}
BOARDS = {"check-pi5", "check-riscv", "check-nvlink"}


def job_of(file: str, name: str) -> Mapping[str, Any]:
    return WORKFLOWS[file].jobs[name]


def lines() -> list[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
    found = []
    for file, workflow in WORKFLOWS.items():
        for name, job, step in workflow.steps():
            if "run" in step:
                found.append((file, name, job, step))
    return found


@pytest.mark.parametrize("path", [*PATHS, ROOT / ".github/dependabot.yml"], ids=lambda p: p.name)
def test_every_action_is_pinned_to_a_commit_with_its_version(path: Path) -> None:
    """Each `uses:` names a whole commit and, in a comment, the version it is; one action has one pin everywhere."""
    for line in re.findall(r"uses: (.+)", path.read_text()):
        assert re.match(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+( # zizmor: .+)?$", line), line
    everything = "".join(p.read_text() for p in PATHS)
    pins = set(re.findall(r"uses: ([\w./-]+)@([0-9a-f]{40})", everything))
    assert len(pins) == len({action for action, _ in pins})


@pytest.mark.parametrize("file", WORKFLOWS)
def test_a_workflow_grants_nothing_and_runs_once(file: str) -> None:
    """Permissions are empty on top, runs of one ref are in one group, and no event gives strangers our rights."""
    document = WORKFLOWS[file].document
    assert document["permissions"] == {}
    assert document["concurrency"]["group"]
    assert set(WORKFLOWS[file].on) <= {"push", "pull_request", "release", "workflow_dispatch"}


@pytest.mark.parametrize(("file", "name"), JOBS)
def test_a_job_is_bounded_and_has_few_rights(file: str, name: str) -> None:
    """Each job ends in time, may read the code and, where its work is that, write just one thing."""
    job = job_of(file, name)
    assert set(job) <= JOB_KEYS
    assert job["timeout-minutes"] <= 120
    written = {what for what, right in job["permissions"].items() if right == "write"}
    allowed = {"comment": {"pull-requests"}, "image": {"packages"}}.get(name, set())
    signer = {"id-token"} if (file, name) in SIGNERS else set()
    assert written <= allowed | signer | ({"packages"} if file == "service.yml" else set())
    assert all(right in {"read", "write"} for right in job["permissions"].values())
    assert all(set(step) <= STEP_KEYS for step in job["steps"])


@pytest.mark.parametrize(("file", "name"), JOBS)
def test_only_jobs_that_sign_have_an_identity(file: str, name: str) -> None:
    """`id-token: write` is for the jobs that sign, and those wait for the environment `release`."""
    job = job_of(file, name)
    assert ("id-token" in job["permissions"]) is ((file, name) in SIGNERS)
    if (file, name) in SIGNERS:
        assert job["environment"] == "release"


@pytest.mark.parametrize(("file", "name"), JOBS)
def test_a_checkout_keeps_no_credentials(file: str, name: str) -> None:
    """The token is not left in the clone that the job's commands see."""
    for step in job_of(file, name)["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"] == {"persist-credentials": False}


@pytest.mark.parametrize(("file", "name"), JOBS)
def test_expressions_are_of_contexts_that_are_known(file: str, name: str) -> None:
    """No expression stands in a line that a shell reads, none in a script, and each starts at a known context."""
    for step in job_of(file, name)["steps"]:
        assert not list(expressions(step.get("run")))
        assert not list(expressions(step.get("with", {}).get("script")))
    for text in expressions(dict(job_of(file, name))):
        bare = re.sub(r"'[^']*'", "", text)
        assert set(re.findall(r"(?<![\w.*-])([a-z]+)\.", bare)) <= CONTEXTS | {"runner"}, text


@pytest.mark.parametrize(
    ("file", "name", "step"), [(file, name, step) for file, name, _, step in lines()], ids=lambda v: str(v)[:60]
)
def test_a_line_is_one_call(file: str, name: str, step: Mapping[str, Any]) -> None:
    """Each `run:` is one make target that exists, or one edge-release command that the parser accepts."""
    line = step["run"]
    assert not re.search(r"[\n;|&<>`(]", line)
    program, *argv = shlex.split(line)
    if program == "make":
        targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert len(argv) == 1
        assert argv[0] in targets
        return
    assert program == "edge-release"
    given = {"$VARIANTS": "", "$TIER": "tiny-edge", "$VERSION": "7", "$CHANNEL": "stable"}
    given |= {"$CONFIG": "deploy.yaml", "$GITOPS": "https://git.example/fleet"}
    words: list[str] = []
    for word in argv:
        assert word in given or not word.startswith("$")
        words += ["tiny-edge-arm64", "mid-tier-arm64"] if word == "$VARIANTS" else [str(given.get(word, word))]
    assert callable(cli.parser().parse_args(words).run)


def test_machines_are_those_of_the_plan() -> None:
    """A job that makes what the plan says runs where the plan says, and takes its subject from the plan."""
    for kind, machine in plan.MACHINES.items():
        name = kind if kind in {"build", "certify"} else f"check-{kind}"
        job = MODEL.jobs[name]
        runs_on = job["runs-on"] if isinstance(job["runs-on"], str) else ", ".join(job["runs-on"])
        assert runs_on == machine
        assert any(f"needs.plan.outputs.{kind}" in text for text in expressions(dict(job)))
        assert (("strategy" in job) is True) == (kind in plan.MATRICES)
    assert set(MODEL.jobs["plan"]["outputs"]) == set(PLAN.outputs())


def run_of(event: Event) -> Run:
    """Return a run in which everything succeeds and every secret, variable and board is there, but nothing is run."""
    names = {text for workflow in WORKFLOWS.values() for text in re.findall(r"secrets\.(\w+)", str(workflow.document))}
    run = Run(MODEL, event, ROOT, ROOT, EVERYTHING, dict.fromkeys(names, CANARY))
    for name, job in MODEL.jobs.items():
        held = run.scope(name, job).holds(job.get("if"))
        run.ended[name] = Ended("success" if held else "skipped", PLAN.outputs() if name == "plan" else {})
    return run


def jobs_of(event: Event) -> set[str]:
    return {name for name, end in run_of(event).ended.items() if end.result == "success"}


@pytest.mark.parametrize(
    ("event", "left_out"),
    [
        pytest.param(PUSH, {"comment", "sign"}, id="push to main"),
        pytest.param(TAG, {"comment"}, id="tag"),
        pytest.param(PULL, {"sign", *BOARDS}, id="pull request"),
        pytest.param(FORK, {"sign", "comment", *BOARDS}, id="fork"),
        pytest.param(Event("workflow_dispatch", "refs/heads/main", inputs=BUILD), {"comment", "sign"}, id="by hand"),
    ],
)
def test_events_start_these_jobs(event: Event, left_out: set[str]) -> None:
    """Boards are not for pull requests, comments for those alone, and only a tag is signed."""
    assert jobs_of(event) == set(MODEL.jobs) - left_out - {"move"}


@pytest.mark.parametrize(
    ("ref", "move", "started"),
    [
        ("refs/tags/v1.2.3", "promote", {"move"}),
        ("refs/tags/v1.2.3", "rollback", {"move"}),
        ("refs/heads/main", "promote", set()),
    ],
)
def test_a_channel_is_moved_by_a_run_for_a_tag_alone(ref: str, move: str, started: set[str]) -> None:
    """Nothing is built then; elsewhere than on a tag, whose name consumers pin, nothing happens at all."""
    assert jobs_of(Event("workflow_dispatch", ref, inputs={**BUILD, "move": move})) == started


@pytest.mark.parametrize(
    ("variables", "started"),
    [
        ({}, set()),
        ({"GITOPS_REPOSITORY": "https://git.example/fleet"}, {"commit"}),
        ({"GITOPS_REPOSITORY": "https://git.example/fleet", "DEPLOY_ROLLOUT": "true"}, {"rollout"}),
        ({"DEPLOY_ROLLOUT": "true"}, set()),
    ],
    ids=["nothing is set", "a repository", "and a cluster", "a cluster alone"],
)
@pytest.mark.parametrize("event", ["workflow_dispatch", "release"])
def test_a_release_is_deployed_where_that_is_set_up(event: str, variables: dict[str, str], started: set[str]) -> None:
    """Each job waits for the environment `deploy`, and has no right but to read the code."""
    given = Event(event, "refs/tags/v1.2.3", inputs={"channel": "stable"})
    run = Run(WORKFLOWS["deploy.yml"], given, ROOT, ROOT, variables)
    for name, job in run.workflow.jobs.items():
        run.ended[name] = Ended("success" if run.scope(name, job).holds(job.get("if")) else "skipped")
        assert (job["environment"], job["permissions"]) == ("deploy", {"contents": "read"})
    assert {name for name, end in run.ended.items() if end.result == "success"} == started


@pytest.mark.parametrize("event", [PULL, FORK], ids=["own", "fork"])
def test_a_pull_request_sees_no_secret_and_no_machine_of_ours(event: Event) -> None:
    """No variable of any step of a job that runs holds a secret, a remote of ours or the registry's address."""
    run = run_of(event)
    for name in jobs_of(event):
        job = MODEL.jobs[name]
        assert str(job["runs-on"]).startswith("ubuntu-")
        assert "environment" not in job
        scope = run.scope(name, job)
        given = {**MODEL.document["env"], **job.get("env", {})}
        for step in job["steps"]:
            given |= step.get("env", {})
        known = Scope({**scope.contexts, "matrix": {"name": "x", "subject": "y"}})
        values = [as_text(known.fill(value)) for value in given.values()]
        assert not [v for v in values if CANARY in v or "s3://ours" in v]


def test_a_board_that_is_not_attached_does_not_hold_a_release_up() -> None:
    """Without boards the gate, and for a tag the signing, still run; a board that failed stops both."""
    run = run_of(TAG)
    run.variables = {}
    for name, job in MODEL.jobs.items():
        held = run.scope(name, job).holds(job.get("if"))
        run.ended[name] = Ended("success" if held else "skipped", run.ended[name].outputs)
    assert {name for name, end in run.ended.items() if end.result == "skipped"} == {"comment", "move", *BOARDS}
    run.ended["check-pi5"] = Ended("failure")
    assert not run.scope("gate", MODEL.jobs["gate"]).holds(MODEL.jobs["gate"]["if"])


def test_a_gate_that_says_no_is_reported_and_not_signed() -> None:
    """The comment comes whatever the gate says; a signature only after yes."""
    for event, name, runs in ((PULL, "comment", True), (TAG, "sign", False)):
        run = run_of(event)
        run.ended["gate"] = Ended("failure")
        assert run.scope(name, MODEL.jobs[name]).holds(MODEL.jobs[name]["if"]) is runs


def test_boards_sign_with_their_own_key_in_their_environment() -> None:
    """A job on a machine of ours waits for the environment `boards`, checks, and signs with the key that is there."""
    for name in BOARDS:
        job = MODEL.jobs[name]
        assert (job["runs-on"][0], job["environment"]) == ("self-hosted", "boards")
        assert [step["run"].split()[1] for step in job["steps"] if "run" in step] == ["check", "attest"]
        assert all("--signer key" in step["run"] for step in job["steps"] if "attest" in step.get("run", ""))


def test_what_a_job_downloads_an_earlier_one_uploaded() -> None:
    """Each artifact that a job takes is made by a job that it needs, however far back."""
    made: dict[str, set[str]] = {}
    for name, _, step in MODEL.steps():
        if "upload-artifact@" in step.get("uses", ""):
            made.setdefault(name, set()).add(re.sub(r"\$\{\{.*\}\}", "x", step["with"]["name"]))

    def reach(name: str) -> set[str]:
        return set(needed(MODEL.jobs[name])).union(*(reach(n) for n in needed(MODEL.jobs[name])))

    for name, _, step in MODEL.steps():
        if "download-artifact@" in step.get("uses", ""):
            wanted = step["with"].get("name") or step["with"]["pattern"]
            within = {artifact for earlier in reach(name) for artifact in made.get(earlier, ())}
            assert any(Path(artifact).match(wanted) for artifact in within), f"{name}: {wanted}"


def test_dependabot_renews_actions_and_packages() -> None:
    """Pins are renewed by pull requests, some days after a version came out."""
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    assert {u["package-ecosystem"] for u in updates} == {"github-actions", "pip"}
    assert all(u["cooldown"]["default-days"] >= 7 for u in updates)
