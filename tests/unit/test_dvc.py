"""dvc.yaml says of every stage what it really depends on."""

from __future__ import annotations

import re
import shlex
from copy import deepcopy
from pathlib import Path

import grimp
import pytest
import yaml

from pipeline import cli
from pipeline.catalog.names import GGUF_TIERS, Target, Tier

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
GRAPH = grimp.build_graph("pipeline", cache_dir=None)
WHOLE = grimp.build_graph(
    "pipeline", cache_dir=None, include_external_packages=True, exclude_type_checking_imports=True
)

# The module of a stage that has another name than the stage, and stages without code dependencies because they always
# run or are cheap to follow by hand.
MODULES = {"check-large": "check", "check-emulated": "check"}
# A check starts the half of its code that its variants' format needs; the other half is no dependency.
UNUSED = {"check": "check_shards", "check-emulated": "check_shards", "check-large": "check_gguf"}
# Targets that are emulated where a release is built on x86_64.
FOREIGN = (Target.ARM64, Target.RISCV64)
FREE = {"emulators", "previous", "manifest"}
# Stages whose outputs are released, or what recipes are found by.
MAKING = ("teacher", "distill", "convert", "calibrate", "sensitivity", "search", "quantize", "shard", "runtime")
TOOLS = "requirements/tools.yaml"
PINNED = yaml.safe_load((ROOT / TOOLS).read_text())
# Plumbing that moves bytes but does not decide them: changing it must not train models again.
PLUMBING = re.compile(
    r"pipeline\.(errors|catalog\..*|catalog|manifest\..*|manifest|ports|stages|toolchain|demo|registry"
    r"|ports\.(files|process|git|torch_env|keys|trust|sigstore)|stages\.(project|previous)|toolchain\.(cache|compiling|wheel)"
    r"|registry\..*)"
)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_one_call_of_the_command_line(stage: str) -> None:
    """Each cmd is one edge-release command that the parser accepts, for every item of its matrix."""
    spec = STAGES[stage]
    matrix = spec.get("matrix", {})
    command = spec["cmd"]
    for key in ("tier", "target"):
        if key in matrix:
            command = command.replace("${item." + key + "}", matrix[key][0])
    program, *argv = shlex.split(command)
    assert program == "edge-release"
    assert callable(cli.parser().parse_args(argv).run)


def test_matrices_cover_all_tiers_and_targets() -> None:
    """No tier or target is left out of any matrix."""
    for stage, spec in STAGES.items():
        for key, values in spec.get("matrix", {}).items():
            left = FOREIGN if stage == "check-emulated" else Target
            assert values == [str(v) for v in (left if key == "target" else GGUF_TIERS)], stage
    assert Tier.LARGE not in GGUF_TIERS


@pytest.mark.parametrize("stage", sorted(set(STAGES) - FREE))
def test_a_stage_depends_on_the_code_that_decides_its_output(stage: str) -> None:
    """Every module a stage's code imports, but for plumbing, is a dependency of the stage in dvc.yaml."""
    module, graph = f"pipeline.stages.{MODULES.get(stage, stage)}", deepcopy(GRAPH)
    if stage in UNUSED:
        graph.remove_module(f"pipeline.stages.{UNUSED[stage]}")
        assert f"pipeline/stages/{UNUSED[stage]}.py" not in STAGES[stage]["deps"]
    wanted = {module, *graph.find_upstream_modules(module)}
    files = {f"{name.replace('.', '/')}.py" for name in wanted if not PLUMBING.fullmatch(name)}
    listed = {dep for dep in STAGES[stage]["deps"] if str(dep).startswith("pipeline/")}
    assert files <= listed, f"add to dvc.yaml: {sorted(files - listed)}"
    assert all((ROOT / dep).exists() for dep in listed)


@pytest.mark.parametrize("stage", MAKING)
def test_a_stage_depends_on_the_tools_that_decide_its_output(stage: str) -> None:
    """Every pinned tool that a stage's code imports, and the compiler of the programs it runs, is among its params."""
    tracked = {tool for entry in STAGES[stage]["params"] if isinstance(entry, dict) for tool in entry.get(TOOLS, [])}
    compiled = {"ziglang"} if "pipeline/toolchain/runtime.py" in STAGES[stage]["deps"] else set()
    assert WHOLE.find_upstream_modules(f"pipeline.stages.{stage}") & set(PINNED) | compiled <= tracked <= set(PINNED)


def test_the_tools_that_stages_depend_on_are_those_installed() -> None:
    """Their versions are the lock file's and the Makefile's."""
    locked = (ROOT / "requirements/build.txt").read_text()
    torch = re.findall(r"^TORCH +:= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    found = {name: re.findall(rf"^{name}==(\S+)", locked, re.MULTILINE) for name in PINNED}
    assert {**found, "torch": torch} == PINNED
