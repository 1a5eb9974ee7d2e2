"""A project folder for the stages that make models: small data, any tiers, any teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from pipeline.stages.project import Project

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


def gguf_tier(**source: Any) -> dict[str, Any]:
    """A GGUF tier's file around its source."""
    recipes = {target: {"base": "Q8_0", "imatrix": False} for target in ("arm64", "riscv64", "x86_64")}
    return {"convert": {"outtype": "f32"}, "calibrate": {"context": 64}, "recipes": recipes, **source}


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
