"""What the workflows of GitHub Actions ask beside the stages: which jobs there are, and whom their releases trust."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pipeline.cli import output
from pipeline.cli.access import SIGSTORE_VARIABLE, Access, add_json_option, trust_file
from pipeline.cli.command import Commands, add
from pipeline.errors import CatalogError
from pipeline.ports import files, sigstore
from pipeline.ports import trust as trust_port
from pipeline.stages.project import Project

WORKFLOW = "model.yml"


def add_commands(commands: Commands) -> None:
    """Add the commands of the workflows."""
    planning = add(
        commands,
        "plan",
        _plan,
        "which jobs make a release, and on which machines, as dvc.yaml says",
        "plan",
        "plan --github",
    )
    planning.add_argument(
        "--github",
        action="store_true",
        help="write the matrices to the file GITHUB_OUTPUT names; refuse a tag that is not the release's",
    )
    add_json_option(planning)
    trusting = add(
        commands,
        "trust",
        _trust,
        "print the trust file for releases that a workflow signs keyless",
        "trust --repository OWNER/REPO --repository-id 123456",
        "trust --pin",
    )
    trusting.add_argument("--line", metavar="NAME", help="release line (default: params.yaml)")
    trusting.add_argument(
        "--repository", metavar="OWNER/REPO", help="whose workflow signs (default: GITHUB_REPOSITORY, in a run)"
    )
    trusting.add_argument(
        "--repository-id", metavar="N", help="its number (default: GITHUB_REPOSITORY_ID; gh api repos/OWNER/REPO)"
    )
    trusting.add_argument("--workflow", metavar="FILE", default=WORKFLOW, help=f"(default: {WORKFLOW})")
    trusting.add_argument(
        "--trusted-root", metavar="FILE", default=sigstore.PRODUCTION, help="(default: the public Sigstore's)"
    )
    trusting.add_argument(
        "--pin",
        action="store_true",
        help="write it to ~/.config/edge-release/trust/LINE.yaml, with the root of the instance that signs here",
    )


def _plan(args: argparse.Namespace) -> None:
    from pipeline.stages import plan

    found = plan.plan(files.load(Path("dvc.yaml"), plan.parse, hint="run this in the project's folder"))
    if args.github:
        _refuse_other_tag(Project.load().params.release.tag)
        _write_outputs(found.outputs())
    if args.json:
        output.emit(found.outputs())
        return
    rows = [[job.kind, job.name, plan.MACHINES[job.kind], " ".join(job.subject)] for job in found.jobs]
    output.say(output.table(["job", "name", "runs on", "what"], rows))


def _refuse_other_tag(tag: str) -> None:
    pushed = os.environ.get("GITHUB_REF_NAME") if os.environ.get("GITHUB_REF_TYPE") == "tag" else None
    if pushed not in {None, tag}:
        raise CatalogError(
            f"this is a run for tag {pushed}, but params.yaml releases {tag}",
            hint="set release.tag and raise release.version in params.yaml, then tag that commit",
        )


def _write_outputs(outputs: dict[str, str]) -> None:
    place = os.environ.get("GITHUB_OUTPUT")
    if not place:
        raise CatalogError("GITHUB_OUTPUT is not set", hint="--github is for a step of a workflow; leave it out here")
    with Path(place).open("a", encoding="utf-8") as f:
        f.writelines(f"{name}={value}\n" for name, value in outputs.items())


def _trust(args: argparse.Namespace) -> None:
    repository = args.repository or os.environ.get("GITHUB_REPOSITORY")
    number = args.repository_id or os.environ.get("GITHUB_REPOSITORY_ID")
    if not repository or not number:
        raise CatalogError("whose workflow signs?", hint="give --repository OWNER/REPO and --repository-id N")
    line, root = Access(args).line, args.trusted_root
    path = trust_file(line)
    if args.pin and (config := os.environ.get(SIGSTORE_VARIABLE)):
        root = f"{line}.trusted_root.json"
        files.write(path.with_name(root), sigstore.trusted_root_of(Path(config)))
    text = trust_port.keyless_text(line, repository, number, args.workflow, root)
    if args.pin:
        trust_port.pin_workflow(path, text)
        output.note(f"pinned in {path}")
    output.say(text.rstrip())
