"""The whole pipeline as a user runs it, on a small model of another architecture than the demo's."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

import jsonschema
import pytest
import yaml

from pipeline.catalog.names import VARIANTS, Target, host_target
from pipeline.cli.schema import schemas
from pipeline.ports import files, qemu
from tests.support import built, projects

REPOSITORY = projects.REPOSITORY
BIN = Path(sys.executable).parent


pytestmark = [pytest.mark.skipif(bool(built.missing()), reason=built.missing()), pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Workshop:
    """A git clone of a project with its own user: configuration, state and caches."""

    root: Path
    env: dict[str, str] = field(repr=False)

    def run(self, *argv: str, status: int = 0) -> str:
        """Run a program of the environment in the project; return what it printed."""
        command = [str(BIN / argv[0]) if (BIN / argv[0]).exists() else argv[0], *argv[1:]]
        done = subprocess.run(command, cwd=self.root, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == status, f"{argv}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def edit(self, name: str, before: str, after: str) -> None:
        """Replace text in a file of the project."""
        path = self.root / name
        text = path.read_text()
        assert before in text, f"{before!r} is not in {name}"
        path.write_text(text.replace(before, after, 1))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A project with a random Qwen3 as its teacher, built once.

    Most of a build is processes that import torch, which the ranks' launcher, each rank and each stage that trains or
    splits must.
    """
    home = tmp_path_factory.mktemp("workshop")
    root = home / "project"
    projects.release_project(root)
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("EDGE_RELEASE_REGISTRY", "GITHUB_"))},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_STATE_HOME": str(home / "state"),
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    made = Workshop(root, env)
    made.run("git", "init", "--quiet", "--initial-branch=main")
    made.run("git", "add", "--all")
    made.run("git", "-c", "user.name=t", "-c", "user.email=t@t.example", "commit", "--quiet", "--message", "a project")
    made.run("dvc", "repro")
    return made


@pytest.fixture
def untouched(workshop: Workshop) -> Iterator[Workshop]:
    """The project, whose catalog is put back afterwards."""
    kept = {p: p.read_bytes() for p in [workshop.root / "params.yaml", *(workshop.root / "models").glob("*.yaml")]}
    kept |= {workshop.root / "golden.jsonl": (workshop.root / "golden.jsonl").read_bytes()}
    yield workshop
    for path, data in kept.items():
        path.write_bytes(data)


def test_a_release_is_signed_published_verified_and_pulled(workshop: Workshop, tmp_path: Path) -> None:
    """From the built stages to an activated variant, each step accepts what the one before made."""
    assert "made a signing key" in workshop.run("edge-release", "sign")
    assert "signed already" in workshop.run("edge-release", "sign")
    published = json.loads(workshop.run("edge-release", "publish", "--json"))
    assert (published["line"], published["version"], published["channel"]) == ("own", 1, "dev")
    again = json.loads(workshop.run("edge-release", "publish", "--json"))
    assert (again["files_stored"], again["serial"]) == (0, published["serial"])
    verified = json.loads(workshop.run("edge-release", "verify", "--json"))
    assert verified["verified"]
    assert verified["manifest_sha256"] == published["manifest_sha256"]
    manifest = json.loads(workshop.run("edge-release", "show", "--json"))
    jsonschema.validate(manifest, json.loads(schemas()["manifest-v1.json"]), jsonschema.Draft202012Validator)
    assert [v["name"] for v in manifest["predicate"]["variants"]] == [v.name for v in VARIANTS]
    assert "own 1  <- dev" in workshop.run("edge-release", "releases")
    for variant in ("tiny-edge-riscv64", "large-x86_64"):
        into = tmp_path / variant
        workshop.run("edge-release", "pull", variant, "--into", str(into))
        assert "verified" in workshop.run("edge-release", "verify", str(into / "current"))


def test_equal_recipes_give_one_file(workshop: Workshop) -> None:
    """Targets that share a recipe are quantized once and share bytes; another recipe gives others."""
    variants = workshop.root / "build/variants"
    digest = {
        t: files.sha256_file(variants / f"tiny-edge-{t}/tiny-edge-{t}/model.gguf")
        for t in ("arm64", "riscv64", "x86_64")
    }
    assert digest["riscv64"] == digest["x86_64"] != digest["arm64"]
    assert len({files.tree_digest(variants / f"large-{t}/large-{t}") for t in ("arm64", "riscv64", "x86_64")}) == 1


def test_a_recipe_that_was_searched_for_is_kept_shown_and_can_be_edited(workshop: Workshop, tmp_path: Path) -> None:
    """The search's recipe is what the file is quantized by, within its budget; by hand it gives the same tensors."""
    found = json.loads((workshop.root / "build/search/mid-tier-x86_64/mid-tier-x86_64.json").read_bytes())
    preset = next(p for p in found["presets"] if p["name"] == "Q4_K_M")
    assert found["chosen"]["size"] <= preset["size"]
    assert found["chosen"]["instructions_per_token"] <= 1.05 * preset["instructions_per_token"]
    assert found["measured"] <= 4
    assert {p["name"] for p in found["presets"]} >= {"Q8_0", "Q4_0", "Q2_K", "IQ2_XXS+imatrix"}
    shown = workshop.run("edge-release", "recipe", "show", "mid-tier-x86_64")
    (tmp_path / "mine.yaml").write_text(shown)
    out = tmp_path / "mine.gguf"
    workshop.run(
        "edge-release", "recipe", "apply", str(tmp_path / "mine.yaml"), "--tier", "mid-tier", "--out", str(out)
    )
    same = json.loads(workshop.run("edge-release", "recipe", "diff", "mid-tier-x86_64", str(out), "--json"))
    assert same == []
    differing = json.loads(workshop.run("edge-release", "recipe", "diff", "mid-tier-riscv64", str(out), "--json"))
    header = json.loads(workshop.run("edge-release", "recipe", "show", str(out), "--json"))
    types = {entry.rpartition("=")[0]: entry.rpartition("=")[2] for entry in header["tensors"]}
    for change in differing:
        assert change["after"] == next(kind for pattern, kind in types.items() if re.search(pattern, change["tensor"]))
    lines = workshop.run("edge-release", "recipe", "show", "mid-tier-x86_64", "--tensor-type-file").splitlines()
    assert lines == yaml.safe_load(shown)["tensors"]


def test_an_unchanged_second_run_builds_nothing(workshop: Workshop) -> None:
    """A second dvc repro runs no stage but the looks at the registry and for emulators."""
    assert set(re.findall(r"Running stage '([^']+)'", workshop.run("dvc", "repro"))) == LOOKS


def test_a_rebuild_gives_every_digest_again(workshop: Workshop, tmp_path: Path) -> None:
    """The whole pipeline in a clean folder, without the first build's cache, gives equal digests."""
    manifest = (workshop.root / "build/release/manifest.json").read_text()
    said = workshop.run("edge-release", "rebuild", "--into", str(tmp_path / "clean"))
    assert f"rebuild: all {manifest.count('sha256')} digests are equal" in said
    assert any((tmp_path / "clean/.dvc/cache/files").rglob("*.dir"))


LOOKS = {"previous", "emulators"}
CHECKS = {"reference@*", "check@*", "check-large", "check-emulated@*", "certify@*"}
SEARCHES = {"sensitivity@*", "search@*"}
emulated = pytest.mark.skipif(
    any(qemu.find(t) is None for t in (Target.ARM64, Target.RISCV64)), reason=f"needs emulators: {qemu.HINT}"
)
CHANGES = [
    pytest.param("params.yaml", "exact_match_drop_max: 0.02", "exact_match_drop_max: 0.03", {"gate"}, id="threshold"),
    pytest.param("params.yaml", "watts: 65", "watts: 70", {"gate"}, id="cost"),
    pytest.param("params.yaml", "valid_days: 365", "valid_days: 30", {"manifest"}, id="validity"),
    pytest.param("params.yaml", "context: 256", "context: 128", CHECKS | SEARCHES, id="check"),
    pytest.param("models/tiny-edge.yaml", "steps: 2", "steps: 3", {"distill@tiny-edge"}, id="distillation"),
    pytest.param("models/mid-tier.yaml", "context: 64", "context: 32", {"calibrate@mid-tier"}, id="calibration"),
    pytest.param(
        "models/tiny-edge.yaml",
        "base: Q4_0",
        "base: Q4_1",
        {"sensitivity@tiny-edge", "search@tiny-edge-arm64"},
        id="recipe",
    ),
    pytest.param(
        "models/mid-tier.yaml",
        "measured: 4",
        "measured: 5",
        {"sensitivity@mid-tier", "search@mid-tier-x86_64"},
        id="budget",
    ),
    pytest.param(
        "models/mid-tier.yaml", "draws: 1", "draws: 2", {"sensitivity@mid-tier", "search@mid-tier-*"}, id="survey"
    ),
    pytest.param("models/tiny-edge.yaml", "outtype: f32", "outtype: f16", {"convert@tiny-edge"}, id="conversion"),
    pytest.param("models/large.yaml", "degree: 2", "degree: 1", {"shard"}, id="shards"),
    pytest.param("golden.jsonl", "total of", "sum of", {"distill@*", *CHECKS, "manifest"}, id="golden"),
]


def test_evidence_can_be_required(workshop: Workshop, tmp_path: Path) -> None:
    """What was proven here passes, by release and by variant; what no board has proven is refused with its own code."""
    workshop.run("edge-release", "verify", "--require-evidence", "host")
    workshop.run("edge-release", "pull", "mid-tier-arm64", "--into", str(tmp_path), "--require-evidence", "host")
    workshop.run("edge-release", "verify", str(tmp_path / "current"), "--require-evidence", "host")
    for runner in ("pi5", "nvlink"):
        said = workshop.run("edge-release", "verify", "--require-evidence", runner, status=35)
        assert f"is not proven on {runner}: there is no signed evidence" in said
    workshop.run(
        "edge-release", "pull", "mid-tier-arm64", "--into", str(tmp_path), "--require-evidence", "pi5", status=35
    )


def test_the_released_program_serves_the_released_model(workshop: Workshop, tmp_path: Path) -> None:
    """A pulled runtime runs a pulled variant as it is: the golden runner answers with the tokens of the evidence."""
    here = host_target()
    assert here is not None
    for name in (f"runtime-{here}", "tiny-edge-arm64"):
        workshop.run("edge-release", "pull", name, "--into", str(tmp_path / name))
    program, model = (
        tmp_path / f"runtime-{here}/current/golden-runner",
        tmp_path / "tiny-edge-arm64/current/model.gguf",
    )
    requests = workshop.root / "build/reference/tiny-edge/requests.json"
    out = tmp_path / "out"
    subprocess.run([program, "--model", model, "--requests", requests, "--out", out, "--context", "256"], check=True)
    manifest = json.loads(workshop.run("edge-release", "show", "--json"))
    entry = next(v for v in manifest["predicate"]["variants"] if v["name"] == "tiny-edge-arm64")
    host_evidence = next(e for e in entry["evidence"] if e["runner"] == "host")
    found = [a["tokens"] for a in json.loads((out / "run.json").read_text())["answers"]]
    assert found == [a["tokens"] for a in host_evidence["answers"]]


@emulated
def test_counted_instructions_do_not_vary(workshop: Workshop) -> None:
    """Five checks under an emulator count the same instructions to the last one."""
    path = workshop.root / "build/evidence/emulated/tiny-edge-arm64/tiny-edge-arm64.json"
    kept, counts = path.read_bytes(), []
    for _ in range(5):
        said = workshop.run("edge-release", "check", "tiny-edge-arm64", "--runner", "emulated")
        assert "M instructions a token" in said
        counts.append(json.loads(path.read_bytes())["instructions"])
    path.write_bytes(kept)  # the build stays as DVC knows it
    assert counts == [json.loads(kept)["instructions"]] * 5


@emulated
def test_certificates_are_shown_and_hold(workshop: Workshop) -> None:
    """Each distinct GGUF file decodes alike on all three targets, and show says so."""
    said = workshop.run("edge-release", "show")
    lines = re.findall(r"^  model [0-9a-f]{12} against x86_64, .*: holds$", said, re.MULTILINE)
    assert len(lines) == 5
    assert all("arm64 " in line and "riscv64 " in line for line in lines)


HIDE = """
import sys

class Hide:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {heavy!r} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
from pipeline.cli import main
sys.exit(main(sys.argv[1:]))
"""
HEAVY = {"numpy", "torch", "transformers", "llama_cpp", "gguf", "dvc", "huggingface_hub", "safetensors", "ziglang",
         "jinja2", "pytest", "pytest_benchmark", "matplotlib", "pynvml"}  # fmt: skip


def test_a_board_needs_the_base_install_alone(workshop: Workshop, tmp_path: Path) -> None:
    """With the variant, the runtime and the reference laid out, check and attest import nothing of the build's packages."""
    here = host_target()
    for name in ("params.yaml", "models", "golden.jsonl"):
        source = workshop.root / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    for name in ("variants/tiny-edge-x86_64", f"runtimes/{here}", "reference/tiny-edge"):
        shutil.copytree(workshop.root / "build" / name, tmp_path / "build" / name)
    (tmp_path / f"build/runtimes/{here}/golden-runner").chmod(0o644)  # as artifacts of a workflow arrive
    for argv in (["check", "tiny-edge-x86_64"], ["attest", "tiny-edge-x86_64"]):
        code = HIDE.format(heavy=HEAVY)
        subprocess.run([sys.executable, "-c", code, *argv], cwd=tmp_path, env=workshop.env, check=True)
    name = "host/tiny-edge-x86_64/tiny-edge-x86_64.json"
    evidence = json.loads((tmp_path / "build/evidence" / name).read_text())
    built = json.loads((workshop.root / "build/evidence" / name).read_text())
    assert evidence == built
    assert (tmp_path / "build/attestations" / name).exists()


@pytest.mark.parametrize(("file", "before", "after", "stages"), CHANGES)
def test_a_change_touches_only_the_stages_that_depend_on_it(
    untouched: Workshop, file: str, before: str, after: str, stages: set[str]
) -> None:
    """DVC sees exactly these stages as changed themselves; what follows them follows from their outputs."""
    untouched.edit(file, before, after)
    changed = set(json.loads(untouched.run("dvc", "status", "--json"))) - LOOKS
    assert {name for name in changed if not any(fnmatch(name, pattern) for pattern in stages)} == set()
    assert {pattern for pattern in stages if not any(fnmatch(name, pattern) for name in changed)} == set()


def test_a_gate_that_says_no_stops_the_build_with_a_reason_a_line(untouched: Workshop) -> None:
    """With a threshold out of reach dvc repro fails, names each variant, and leaves no manifest to sign."""
    untouched.edit("params.yaml", "exact_match_min: 0.0", "exact_match_min: 1.0")
    said = untouched.run("dvc", "repro", status=255)
    refused = re.findall(r"^refused: (\S+)-\w+ on host: exact match is \S+, below 1$", said, re.MULTILINE)
    assert len(refused) == 3
    assert len(set(refused)) == 1
    assert not (untouched.root / "build/gate.json").exists()


def test_other_content_under_a_published_version_is_refused(untouched: Workshop) -> None:
    """A changed release with an unchanged version is not published, and the error says what to do."""
    untouched.edit("params.yaml", "valid_days: 365", "valid_days: 364")
    untouched.run("dvc", "repro")
    untouched.run("edge-release", "sign")
    assert "raise release.version in params.yaml to 2" in untouched.run("edge-release", "publish", status=7)


def test_the_next_release_is_compared_with_the_last_and_channels_move(untouched: Workshop) -> None:
    """Release 2 knows release 1; promote and rollback move channels and consumers follow."""
    untouched.edit("params.yaml", "version: 1", "version: 2")
    untouched.run("dvc", "repro")
    untouched.run("edge-release", "sign")
    untouched.run("edge-release", "publish")
    assert "compared with release 1" in untouched.run("edge-release", "show")
    untouched.run("edge-release", "promote", "1", "canary")
    untouched.run("edge-release", "promote", "2", "canary")
    untouched.run("edge-release", "verify", "--channel", "canary")
    untouched.run("edge-release", "verify", "--channel", "dev")
    assert "rollback: release 1 is older" in untouched.run("edge-release", "verify", "--release", "1", status=24)
    assert "points back to release 1" in untouched.run("edge-release", "rollback", "canary")
    for channel, version in (("canary", 1), ("dev", 2), ("canary", 1)):
        assert f"release own {version} " in untouched.run("edge-release", "verify", "--channel", channel)
    assert json.loads(untouched.run("edge-release", "releases", "--json"))["channels"] == {"canary": 1, "dev": 2}


def test_without_emulators_the_release_goes_to_dev_alone(untouched: Workshop, tmp_path: Path) -> None:
    """dvc repro completes, says what is missing and how to get it, and no channel opens that asks for it."""
    (tmp_path / "bin").mkdir()
    for name in ("git", "env", "sh", "cc", "c++", "uname"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    params = yaml.safe_load((untouched.root / "params.yaml").read_text())
    params["channels"]["canary"] = {**params["channels"]["dev"], "arm64": ["emulated", "pi5"]}
    (untouched.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    bare = replace(untouched, env={**untouched.env, "PATH": f"{BIN}{os.pathsep}{tmp_path / 'bin'}"})
    said = bare.run("dvc", "repro")
    assert "tiny-edge-arm64 on emulated: missing: qemu-aarch64 is not installed: apt-get install qemu-user" in said
    assert re.search(r"^gate: passed, for channels dev$", said, re.MULTILINE)
    manifest = json.loads((untouched.root / "build/release/manifest.json").read_text())
    entry = next(v for v in manifest["predicate"]["variants"] if v["name"] == "tiny-edge-arm64")
    assert [m["runner"] for m in entry["missing"]] == ["emulated"]
    assert "canary" not in manifest["predicate"]["gate"]["channels"]
    assert set(entry["certificate"]["missing"]) == {"arm64", "riscv64"}
