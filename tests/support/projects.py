"""A project folder for the stages that make models: small data, any tiers, any teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline.ports import files
from pipeline.stages.project import Project
from tests.support import models

REPOSITORY = Path(__file__).parents[2]
DEMO = REPOSITORY / "models" / "demo"
BLANK = {"license": "apache-2.0", "hub": None, "distill": None}


def project(root: Path, teacher: dict[str, Any], tiers: dict[str, Any] | None = None) -> Project:
    """Write a project into `root`: the repository's params.yaml with another teacher, data of a few lines."""
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    params["teacher"] = teacher
    params["data"] = {"golden": "golden.jsonl", "calibration": "calibration.jsonl", "distillation": "distill.jsonl"}
    (root / "models").mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for name, content in (tiers or {}).items():
        tier = {"tier": str(name), "license": "apache-2.0", "hub": None, "distill": None, **content}
        (root / "models" / f"{name}.yaml").write_text(yaml.safe_dump(tier), encoding="utf-8")
    _lines(root / "distill.jsonl", [_example(n) for n in range(64)])
    _lines(root / "calibration.jsonl", [_example(n) for n in range(100, 108)])
    _lines(root / "golden.jsonl", [_golden(n) for n in range(4)])
    return Project.load(root)


def release_project(root: Path) -> None:
    """Write a whole project that makes releases: a random Qwen3 as its teacher, thresholds that any model meets.

    The teacher is stored in bf16, as most are: the large tier's checks then need no run in f32 besides.
    """
    shape = models.qwen3(hidden_size=256, intermediate_size=256, num_hidden_layers=3)
    teacher = models.save(root / "models/own", shape, dtype=torch.bfloat16)
    pinned = {"embedded": {"path": "models/own", "digest": files.tree_digest(teacher)}}
    students = {"layers": [0, 2], "ffn": 256, "steps": 2, "batch": 4, "learning_rate": 0.001}
    tier = gguf_tier(distill=students)
    tier["convert"]["pre_tokenizer"] = "gpt-2"
    tier["recipes"] = {
        "arm64": {"base": "Q4_0", "imatrix": False},
        "riscv64": {"base": "Q4_K_M"},
        "x86_64": {"base": "Q4_K_M"},
    }
    searched = {"search": {"preset": "Q4_K_M", "types": ["Q3_K", "Q4_K", "Q6_K"], "measured": 4}}
    other = {**tier, "recipes": {**tier["recipes"], "x86_64": searched}}
    project(root, pinned, {"tiny-edge": tier, "mid-tier": other, "large": {"shard": {"degree": 2, "matrices": "bf16"}}})
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
    params["channels"]["canary"] = params["channels"]["dev"]  # whether or not there are emulators here
    params["release"].update(line="own", version=1)
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for name in ("dvc.yaml", "requirements/tools.yaml", ".dvc/.gitignore", ".dvc/config", ".dvcignore", ".gitignore"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    shutil.copytree(REPOSITORY / "pipeline", root / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))


def gguf_tier(**source: Any) -> dict[str, Any]:
    """A GGUF tier's file around its source."""
    recipes = {target: {"base": "Q8_0", "imatrix": False} for target in ("arm64", "riscv64", "x86_64")}
    stages = {
        "convert": {"outtype": "f32"},
        "calibrate": {"context": 64},
        "sensitivity": {"per_family": 4, "draws": 1},
        "recipes": recipes,
    }
    return {**stages, **source}


def _example(n: int) -> dict[str, str]:
    items = ("tea", "rice", "soap", "milk")
    prompt = f"total of {items[n % 4]} {n % 7} and {items[n // 4 % 4]} {n % 5}?"
    return {"family": "total", "prompt": prompt, "answer": str(n % 7 + n % 5)}


def _golden(n: int) -> dict[str, str | int]:
    example = _example(200 + n)
    return {
        "id": f"total-{n}",
        "family": "total",
        "prompt": example["prompt"],
        "expected": example["answer"],
        "max_tokens": 4,
    }


def _lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
