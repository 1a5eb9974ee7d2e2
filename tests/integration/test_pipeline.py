"""The whole pipeline as a user runs it, on a small model of another architecture than the demo's."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jsonschema
import pytest
import yaml

from pipeline.catalog.names import VARIANTS
from pipeline.errors import PipelineError
from pipeline.ports import files
from pipeline.stages.schema import schemas
from pipeline.toolchain import host
from tests.support import models, projects

REPOSITORY = projects.REPOSITORY
BIN = Path(sys.executable).parent


def _built() -> bool:
    try:
        host.find()
    except PipelineError:
        return False
    return True


pytestmark = [
    pytest.mark.skipif(not _built(), reason="llama.cpp is not built for this machine: make setup"),
    pytest.mark.timeout(900),
]


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
    """A project with a random Qwen3 as its teacher, built once."""
    home = tmp_path_factory.mktemp("workshop")
    root = home / "project"
    teacher = models.save(
        root / "models/own", models.qwen3(hidden_size=256, intermediate_size=256, num_hidden_layers=3)
    )
    _write_project(root, teacher)
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


def _write_project(root: Path, teacher: Path) -> None:
    pinned = {"embedded": {"path": "models/own", "digest": files.tree_digest(teacher)}}
    students = {"layers": [0, 2], "ffn": 256, "steps": 2, "batch": 4, "learning_rate": 0.001}
    tier = projects.gguf_tier(distill=students)
    tier["convert"]["pre_tokenizer"] = "gpt-2"
    tier["recipes"] = {
        "arm64": {"base": "Q4_0", "imatrix": False},
        "riscv64": {"base": "Q4_K_M"},
        "x86_64": {"base": "Q4_K_M"},
    }
    projects.project(
        root, pinned, {"tiny-edge": tier, "mid-tier": tier, "large": {"shard": {"degree": 2, "matrices": "bf16"}}}
    )
    params = yaml.safe_load((root / "params.yaml").read_text())
    for limits in params["thresholds"]["tiers"].values():
        limits["quality"] = {
            "exact_match_min": 0.0,
            "mean_kl_max": 9.0,
            "p99_kl_max": 99.0,
            "perplexity_ratio_max": 99.0,
        }
        limits["latency"] = {"ttft_p95_ms_max": 99999.0, "per_token_p95_ms_max": 99999.0}
        limits["cost_per_1k_usd_max"] = 999.0
    params["release"].update(line="own", version=1)
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for name in ("dvc.yaml", ".dvc/config", ".dvcignore", ".gitignore"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    shutil.copytree(REPOSITORY / "pipeline", root / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))


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
    digest = {t: files.sha256_file(variants / f"tiny-edge-{t}/model.gguf") for t in ("arm64", "riscv64", "x86_64")}
    assert digest["riscv64"] == digest["x86_64"] != digest["arm64"]
    assert len({files.tree_digest(variants / f"large-{t}") for t in ("arm64", "riscv64", "x86_64")}) == 1


def test_an_unchanged_second_run_builds_nothing(workshop: Workshop) -> None:
    """A second dvc repro runs no stage but the look at the registry."""
    assert set(re.findall(r"Running stage '([^']+)'", workshop.run("dvc", "repro"))) == {"previous"}


CHANGES = [
    pytest.param("params.yaml", "exact_match_drop_max: 0.02", "exact_match_drop_max: 0.03", {"gate"}, id="threshold"),
    pytest.param("params.yaml", "watts: 65", "watts: 70", {"gate"}, id="cost"),
    pytest.param("params.yaml", "valid_days: 365", "valid_days: 30", {"manifest"}, id="validity"),
    pytest.param("params.yaml", "context: 256", "context: 128", {"check@*", "check-large@*"}, id="check"),
    pytest.param("models/tiny-edge.yaml", "steps: 2", "steps: 3", {"distill@tiny-edge"}, id="distillation"),
    pytest.param("models/mid-tier.yaml", "context: 64", "context: 32", {"calibrate@mid-tier"}, id="calibration"),
    pytest.param("models/tiny-edge.yaml", "base: Q4_0", "base: Q4_1", {"quantize@tiny-edge-arm64"}, id="recipe"),
    pytest.param("models/tiny-edge.yaml", "outtype: f32", "outtype: f16", {"convert@tiny-edge"}, id="conversion"),
    pytest.param("models/large.yaml", "degree: 2", "degree: 1", {"shard@*"}, id="shards"),
    pytest.param(
        "golden.jsonl", "total of", "sum of", {"distill@*", "check@*", "check-large@*", "manifest"}, id="golden"
    ),
]


@pytest.mark.parametrize(("file", "before", "after", "stages"), CHANGES)
def test_a_change_touches_only_the_stages_that_depend_on_it(
    untouched: Workshop, file: str, before: str, after: str, stages: set[str]
) -> None:
    """DVC sees exactly these stages as changed themselves; what follows them follows from their outputs."""
    untouched.edit(file, before, after)
    changed = set(json.loads(untouched.run("dvc", "status", "--json"))) - {"previous"}
    assert {re.sub(r"@.*", "@*", name) if f"{name.split('@')[0]}@*" in stages else name for name in changed} == stages


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
    assert "rollback: release 1 is older" in untouched.run("edge-release", "verify", "--release", "1", status=24)
    assert "points back to release 1" in untouched.run("edge-release", "rollback", "canary")
    untouched.run("edge-release", "verify", "--channel", "canary")
    assert json.loads(untouched.run("edge-release", "releases", "--json"))["channels"] == {"canary": 1, "dev": 2}
