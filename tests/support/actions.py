"""A run of a GitHub Actions workflow on this machine: every `run:` line is executed, `uses:` is stood in for.

Each job gets a fresh clone, a user without configuration and the environment that its own `make setup` or
`make setup-base` stands for; artifacts go from job to job as GitHub passes them, modes lost and all. What this does not
know (an action, an expression, a key of a job) is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support import environments
from tests.support.expressions import Open, Scope, Unknown, as_text

REPOSITORY = "acme/edge"
REPOSITORY_ID = "1001"
JOB_KEYS = {
    "name", "needs", "if", "runs-on", "environment", "timeout-minutes", "permissions", "strategy", "outputs", "steps",
    "concurrency", "env",
}  # fmt: skip
STEP_KEYS = {"id", "if", "run", "uses", "with", "env"}
# What a runner gives to a job, and none of this process's own services and secrets.
_INHERITED = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR", "XDG_CACHE_HOME", "EDGE_RELEASE_CACHE")
_NEEDED_BY_AN_ACTION = ("actions/checkout", "actions/setup-python", "actions/cache")


@dataclass(frozen=True)
class Event:
    """What started a run."""

    name: str
    ref: str
    head: str | None = None  # for a pull request: the repository it comes from
    inputs: Mapping[str, str] = field(default_factory=dict)  # by hand

    @property
    def payload(self) -> dict[str, Any]:
        return {"pull_request": {"head": {"repo": {"full_name": self.head}}}} if self.head else {}

    def github(self, workflow: str) -> dict[str, Any]:
        """Return the context `github`."""
        return {
            "actor": "someone",
            "event": Open(self.payload),
            "event_name": self.name,
            "ref": self.ref,
            "ref_name": self.ref.split("/", 2)[2],
            "ref_type": "tag" if self.ref.startswith("refs/tags/") else "branch",
            "repository": REPOSITORY,
            "repository_id": REPOSITORY_ID,
            "server_url": "https://github.com",
            "sha": "0" * 40,
            "token": "a-token",
            "workflow_ref": f"{REPOSITORY}/.github/workflows/{workflow}@{self.ref}",
        }


@dataclass(frozen=True)
class Workflow:
    """A parsed workflow; `jobs` in an order in which each comes after those it needs."""

    file: str
    document: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> Workflow:
        return cls(path.name, yaml.safe_load(path.read_text(encoding="utf-8")))

    @property
    def on(self) -> Mapping[str, Any]:
        """The events it is for; YAML 1.1 takes the word for a truth value."""
        found: Mapping[str, Any] = self.document[True]
        return found

    @property
    def jobs(self) -> dict[str, Mapping[str, Any]]:
        left, found = dict(self.document["jobs"]), {}
        while left:
            ready = [name for name, job in left.items() if set(needed(job)) <= set(found)]
            if not ready:
                raise Unknown(f"{self.file}: {sorted(left)} wait for each other")
            found |= {name: left.pop(name) for name in ready}
        return found

    def steps(self) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
        """Yield every step with its job and the job's name."""
        for name, job in self.jobs.items():
            for step in job["steps"]:
                yield name, job, step


def needed(job: Mapping[str, Any]) -> list[str]:
    """Return the jobs a job needs."""
    given = job.get("needs", [])
    return [given] if isinstance(given, str) else list(given)


@dataclass(frozen=True)
class Ended:
    """How a job ended: success, failure or skipped; `outputs` are its own."""

    result: str
    outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Run:
    """A run of a workflow for an event; `ended` says how each of its jobs ended.

    Args:
        project: the repository that `actions/checkout` clones.
        home: folder for clones, users and artifacts.
        commands: the environment whose commands `make setup` gives.
        identity: variables a job with `id-token: write` gets.
        surroundings: variables every job gets, as a self-made runner would give them.
        stand_ins: artifacts that a job also gets with its first, because this machine is not of the kind it asks for.
    """

    workflow: Workflow
    event: Event
    project: Path
    home: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    identity: Mapping[str, str] = field(default_factory=dict)
    surroundings: Mapping[str, str] = field(default_factory=dict)
    stand_ins: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ended: dict[str, Ended] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)

    def scope(self, name: str, job: Mapping[str, Any]) -> Scope:
        """Return what a job's own expressions see."""
        needs = {n: {"result": self.ended[n].result, "outputs": self.ended[n].outputs} for n in needed(job)}
        contexts = {
            "github": self.event.github(self.workflow.file),
            "inputs": Open(self.event.inputs),
            "needs": needs,
            "secrets": Open(self.secrets),
            "vars": Open(self.variables),
        }
        return Scope(contexts, all(self.ended[n].result == "success" for n in self._before(job)))

    def _before(self, job: Mapping[str, Any]) -> set[str]:
        """Return every job before a job: a skipped one among them, however far away, skips what asks for success."""
        found = set(needed(job))
        for name in needed(job):
            found |= self._before(self.workflow.jobs[name])
        return found

    def execute(self) -> None:
        """Run every job whose condition holds."""
        for name, job in self.workflow.jobs.items():
            if unknown := set(job) - JOB_KEYS:
                raise Unknown(f"{name}: {sorted(unknown)}")
            scope = self.scope(name, job)
            if not scope.holds(job.get("if")):
                self.ended[name] = Ended("skipped")
                continue
            ends = [self._run(name, job, scope, item) for item in self._items(job, scope)]
            failed = any(end.result != "success" for end in ends)
            self.ended[name] = Ended("failure" if failed else "success", ends[-1].outputs)

    @staticmethod
    def _items(job: Mapping[str, Any], scope: Scope) -> list[Mapping[str, str]]:
        strategy = scope.fill(job.get("strategy", {}))
        if unknown := (set(strategy) - {"matrix", "fail-fast"}) | (set(strategy.get("matrix", {})) - {"include"}):
            raise Unknown(f"strategy: {sorted(unknown)}")
        found: list[Mapping[str, str]] = strategy["matrix"]["include"] if strategy else [{}]
        return found

    def _run(self, name: str, job: Mapping[str, Any], scope: Scope, item: Mapping[str, str]) -> Ended:
        return _Job(self, name, job, Scope({**scope.contexts, "matrix": item})).execute()

    @property
    def artifacts(self) -> Path:
        return self.home / "artifacts"


class _Job:
    """One job for one item of its matrix, in a folder of its own."""

    def __init__(self, run: Run, name: str, job: Mapping[str, Any], scope: Scope) -> None:
        self.run, self.name, self.job, self.scope = run, name, job, scope
        suffix = "-".join(["", *map(str, scope.contexts["matrix"].values())][:2])
        self.home = run.home / f"{name}{suffix}"
        self.work = self.home / "work"
        self.home.mkdir(parents=True)
        self.outputs: dict[str, dict[str, str]] = {}
        self.path: list[str] = []
        self.stand_ins = list(run.stand_ins.get(name, ()))
        self.environment = self._environment()

    def execute(self) -> Ended:
        """Run the steps whose conditions hold; after one that failed, only those that do not ask for success."""
        succeeded = True
        for step in self.job["steps"]:
            if unknown := set(step) - STEP_KEYS:
                raise Unknown(f"{self.name}: step with {sorted(unknown)}")
            scope = self._scope(succeeded)
            if scope.holds(step.get("if")):
                succeeded &= self._step(step, scope)
        outputs = self._scope(succeeded).fill(self.job.get("outputs", {})) if succeeded else {}
        return Ended("success" if succeeded else "failure", outputs)

    def _scope(self, succeeded: bool) -> Scope:
        steps = {name: {"outputs": found} for name, found in self.outputs.items()}
        contexts = {**self.scope.contexts, "steps": steps, "env": self.environment}
        return Scope(contexts, succeeded)

    def _environment(self) -> dict[str, str]:
        given = [self.run.workflow.document.get("env", {}), self.job.get("env", {})]
        return {key: as_text(self.scope.fill(value)) for level in given for key, value in level.items()}

    def _step(self, step: Mapping[str, Any], scope: Scope) -> bool:
        if "uses" in step:
            self._use(step["uses"].split("@")[0], scope.fill(step.get("with", {})))
            return True
        line = step["run"]
        if line in {"make setup", "make setup-base"}:
            environments.stamped(self.work / ".venv", base=line == "make setup-base")
        variables = {key: as_text(scope.fill(value)) for key, value in step.get("env", {}).items()}
        return self._command(line, variables, step.get("id"))

    def _command(self, line: str, variables: Mapping[str, str], step_id: str | None) -> bool:
        files = {name: self.home / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_PATH", "GITHUB_STEP_SUMMARY")}
        for path in files.values():
            path.touch()
        before = time.monotonic()
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", line],
            cwd=self.work,
            env={**self._given(), **{k: str(v) for k, v in files.items()}, **self.environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60 * self.job["timeout-minutes"],
            check=False,
        )
        told = f"{self.home.name}: {line}: {done.returncode}, {time.monotonic() - before:.1f} s"
        self.run.executed.append(told)
        print(told, done.stdout[-6000:], done.stderr[-6000:] if done.returncode else "", sep="\n", flush=True)
        self.path = files["GITHUB_PATH"].read_text().split()
        if step_id:
            lines = files["GITHUB_OUTPUT"].read_text().splitlines()
            self.outputs[step_id] = dict(text.split("=", 1) for text in lines)
        return done.returncode == 0

    def _given(self) -> dict[str, str]:
        github = self.scope.contexts["github"]
        inherited = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        told = {
            f"GITHUB_{key.upper()}": github[key]
            for key in ("ref", "ref_name", "ref_type", "repository", "repository_id", "server_url", "workflow_ref")
        }
        may_sign = self.job.get("permissions", {}).get("id-token") == "write"
        return {
            **inherited,
            "GIT_CONFIG_GLOBAL": os.devnull,
            "PATH": os.pathsep.join([*reversed(self.path), environments.without_our_commands(inherited["PATH"])]),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_STATE_HOME": str(self.home / "state"),
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            **told,
            **self.run.surroundings,
            **(self.run.identity if may_sign else {}),
        }

    def _use(self, action: str, given: Mapping[str, Any]) -> None:
        if action == "actions/checkout":
            self._checkout()
        elif action == "actions/upload-artifact":
            upload(self.work, given, self.run.artifacts)
        elif action == "actions/download-artifact":
            download(self.run.artifacts, given, self.work)
            while self.stand_ins:
                download(self.run.artifacts, {"name": self.stand_ins.pop(), "path": given["path"]}, self.work)
        elif action not in _NEEDED_BY_AN_ACTION:
            raise Unknown(f"{self.name}: {action}")

    def _checkout(self) -> None:
        ref = self.scope.contexts["github"]["ref_name"]
        subprocess.run(
            ["git", "clone", "--quiet", "--depth=1", f"--branch={ref}", f"file://{self.run.project}", str(self.work)],
            env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_COUNT": "0"},
            check=True,
            capture_output=True,
        )


def upload(work: Path, given: Mapping[str, Any], artifacts: Path) -> None:
    """Keep an artifact as actions/upload-artifact does: names start at what all given paths have in common."""
    if unknown := set(given) - {"name", "path", "if-no-files-found", "overwrite", "retention-days"}:
        raise Unknown(f"upload-artifact: {sorted(unknown)}")
    patterns = given["path"].split()
    searched = [
        work / (pattern.partition("*")[0].rpartition("/")[0] if "*" in pattern else pattern) for pattern in patterns
    ]
    found = [match for pattern in patterns for match in work.glob(pattern)]
    root = Path(os.path.commonpath(searched))
    if len(searched) == 1 and root.is_file():
        root = root.parent
    files = [path for match in found for path in ([match] if match.is_file() else match.rglob("*")) if path.is_file()]
    assert files, f"{given['name']}: no file at {patterns}"
    shutil.rmtree(artifacts / given["name"], ignore_errors=True)
    for path in files:
        _copy(path, artifacts / given["name"] / path.relative_to(root))


def download(artifacts: Path, given: Mapping[str, Any], work: Path) -> None:
    """Lay out artifacts as actions/download-artifact does."""
    if unknown := set(given) - {"name", "pattern", "merge-multiple", "path"}:
        raise Unknown(f"download-artifact: {sorted(unknown)}")
    if "name" in given:
        found = [artifacts / given["name"]]
    elif given.get("merge-multiple"):
        found = sorted(artifacts.glob(given["pattern"]))
    else:
        raise Unknown("download-artifact: a pattern without merge-multiple")
    assert found, f"no artifact is named {given}"
    for folder in found:
        assert folder.is_dir(), f"no artifact is named {folder.name}"
        for path in folder.rglob("*"):
            if path.is_file():
                _copy(path, work / given["path"] / path.relative_to(folder))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o644)
