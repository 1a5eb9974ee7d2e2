"""Which jobs of GitHub Actions make a release: read from dvc.yaml, so that both always say the same.

Rules: a build job makes what its tier or target releases, and DVC whatever that needs; a check is one call, on the kind
of machine its runner class and target ask for; what no job here makes (a new stage, the gate, the manifest) is made by
the job that gathers all evidence, because that one runs the whole of dvc.yaml. Nothing here reads or writes a file.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from pipeline.catalog.document import Document, parse_yaml
from pipeline.catalog.names import GGUF_TIERS, RunnerClass, Target, Tier, Variant
from pipeline.errors import CatalogError

_RELEASED = ("build/variants/", "build/runtimes/")
_NEEDED_BY_CHECKS = (*_RELEASED, "build/reference/")


class Kind(StrEnum):
    """What a job does, and with it where it runs; the workflow has one job definition for each."""

    BUILD = "build"
    HOST = "host"
    ARM64 = "arm64"
    LARGE = "large"
    EMULATED = "emulated"
    CERTIFY = "certify"
    PI5 = "pi5"
    RISCV = "riscv"
    NVLINK = "nvlink"


MACHINES = {
    Kind.BUILD: "ubuntu-24.04",
    Kind.HOST: "ubuntu-24.04",
    Kind.ARM64: "ubuntu-24.04-arm",
    Kind.LARGE: "ubuntu-24.04",
    Kind.EMULATED: "ubuntu-24.04",
    Kind.CERTIFY: "ubuntu-24.04",
    Kind.PI5: "self-hosted, pi5",
    Kind.RISCV: "self-hosted, riscv",
    Kind.NVLINK: "self-hosted, nvlink",
}


MATRICES = (Kind.BUILD, Kind.HOST, Kind.EMULATED, Kind.CERTIFY)


@dataclass(frozen=True)
class Job:
    """One job; `subject` is what its command is about: stages to build, variants to check, or a tier."""

    kind: Kind
    name: str
    subject: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All jobs; `parts` are the stages whose outcome checks need, `checked` those that jobs run by themselves."""

    jobs: Sequence[Job]
    parts: Sequence[str]
    checked: Sequence[str]

    def of(self, kind: Kind) -> list[dict[str, str]]:
        """Return a kind's jobs as entries of a matrix."""
        return [{"name": j.name, "subject": " ".join(j.subject)} for j in self.jobs if j.kind is kind]

    def outputs(self) -> dict[str, str]:
        """Return what the workflow's other jobs read: JSON for a kind that is a matrix, words for the rest."""
        kinds = {str(kind): json.dumps(self.of(kind)) for kind in MATRICES}
        kinds |= {str(job.kind): " ".join(job.subject) for job in self.jobs if job.kind not in MATRICES}
        return {**kinds, "parts": " ".join(self.parts), "checked": " ".join(self.checked)}


class StageEntry(Document):
    """What is read of a stage in dvc.yaml; the rest is DVC's."""

    model_config = ConfigDict(extra="ignore")

    cmd: str
    matrix: Annotated[dict[str, list[str]], Field(default_factory=dict)]
    outs: Annotated[list[str | dict[str, Any]], Field(default_factory=list)]


class DvcFile(Document):
    """What is read of dvc.yaml."""

    model_config = ConfigDict(extra="ignore")

    stages: dict[str, StageEntry]


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml for one item of its matrix; `name` is as DVC writes it."""

    name: str
    cmd: str
    outs: tuple[str, ...]


def parse(text: str, file: str) -> DvcFile:
    """Return a `dvc.yaml`; raises CatalogError where it is none."""
    return parse_yaml(text, DvcFile, file)


def plan(dvc_file: DvcFile) -> Plan:
    """Return the jobs for a dvc.yaml; raises CatalogError where a check is not as `check` and `certify` are."""
    found = list(stages(dvc_file))
    checks = [stage for stage in found if _words(stage)[1:2] in (["check"], ["certify"])]
    jobs = [*_builds(found), *_checks(checks), *_boards()]
    return Plan(
        jobs=sorted(jobs, key=lambda job: list(Kind).index(job.kind)),
        parts=[stage.name for stage in found if _makes(stage, _NEEDED_BY_CHECKS)],
        checked=[stage.name for stage in checks],
    )


def stages(dvc_file: DvcFile) -> Iterator[Stage]:
    """Yield every stage, a matrix expanded as DVC does."""
    for name, entry in dvc_file.stages.items():
        outs = [out if isinstance(out, str) else next(iter(out)) for out in entry.outs]
        for values in itertools.product(*entry.matrix.values()):
            item = dict(zip(entry.matrix, values, strict=True))
            suffix = f"@{'-'.join(values)}" if item else ""
            yield Stage(f"{name}{suffix}", _filled(entry.cmd, item), tuple(_filled(out, item) for out in outs))


def _filled(text: str, item: Mapping[str, str]) -> str:
    for key, value in item.items():
        text = text.replace("${item." + key + "}", value)
    return text


def _words(stage: Stage) -> list[str]:
    return shlex.split(stage.cmd)


def _makes(stage: Stage, folders: Sequence[str]) -> bool:
    return any(out.startswith(tuple(folders)) for out in stage.outs)


def _builds(found: Sequence[Stage]) -> Iterator[Job]:
    """One job for a tier, whose variants come from one model, and one for a target's programs."""
    jobs: dict[str, list[str]] = {}
    for stage in found:
        if _makes(stage, _RELEASED):
            jobs.setdefault(_made_with(stage), []).append(stage.name)
    return (Job(Kind.BUILD, name, tuple(names)) for name, names in jobs.items())


def _made_with(stage: Stage) -> str:
    for out in stage.outs:
        if out.startswith("build/variants/"):
            return Variant.parse(out.removeprefix("build/variants/")).tier
    return stage.name.replace("@", "-")


def _checks(checks: Sequence[Stage]) -> Iterator[Job]:
    jobs: dict[tuple[Kind, str], list[str]] = {}
    for stage in checks:
        kind, name, subject = _check(stage)
        jobs.setdefault((kind, name), []).extend(subject)
    return (Job(kind, name, tuple(subject)) for (kind, name), subject in jobs.items())


def _check(stage: Stage) -> tuple[Kind, str, list[str]]:
    words = _words(stage)
    if words[1] == "certify":
        return Kind.CERTIFY, words[-1], [words[-1]]
    try:
        at = words.index("--runner")
        variants, runner = [Variant.parse(word) for word in words[2:at]], RunnerClass(words[at + 1])
        target = next(iter({v.target for v in variants} if variants[0].tier in GGUF_TIERS else {Target.X86_64}))
    except (ValueError, IndexError) as e:
        raise CatalogError(
            f"dvc.yaml: stage {stage.name}: {stage.cmd!r} is no check that a job can make",
            hint="write edge-release check VARIANT... --runner CLASS",
        ) from e
    names = [v.name for v in variants]
    if runner is RunnerClass.EMULATED:
        return Kind.EMULATED, names[0], names
    if variants[0].tier is Tier.LARGE:
        return Kind.LARGE, Tier.LARGE, names
    return (Kind.ARM64 if target is Target.ARM64 else Kind.HOST), target, names


def _boards() -> Iterator[Job]:
    """What a board of each class proves; the stages of dvc.yaml run where a release is built, hence none is there."""
    for kind, target in ((Kind.PI5, Target.ARM64), (Kind.RISCV, Target.RISCV64)):
        yield Job(kind, kind, tuple(Variant(tier, target).name for tier in GGUF_TIERS))
    yield Job(Kind.NVLINK, Kind.NVLINK, tuple(Variant(Tier.LARGE, target).name for target in Target))
