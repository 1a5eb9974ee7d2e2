"""What the extender knows of a node, read from the API's document.

    kubernetes.io/arch                  label: the instruction set
    edge=pi, edge=riscv, gpu=nvlink     labels: the board; edge-release.dev/board names its runner class instead
    topology.kubernetes.io/zone         label: where it is
    edge-release.dev/latency-ms         label: the round trip to those it serves
    nvidia.com/gpu.memory               label: MiB of one GPU (NVIDIA's GPU feature discovery sets it)
    edge-release.dev/nvlink             label: how many GPUs each group has that NVLink joins, e.g. `4` or `2-2`
    edge-release.dev/models             annotation: digests of model files on its disk

Rules: what is missing or cannot be read is unknown (None), never a guess. Sizes are in bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from pipeline.catalog.names import BOARDS, RunnerClass, Target

PREFIX, GPU = "edge-release.dev", "nvidia.com/gpu"
MODEL = f"{PREFIX}/model"
_MAX_LISTED = 64
_TARGETS = {"arm64": Target.ARM64, "amd64": Target.X86_64, "riscv64": Target.RISCV64}
_BOARDS = {
    ("edge", "pi"): RunnerClass.PI5, ("edge", "riscv"): RunnerClass.RISCV, ("gpu", "nvlink"): RunnerClass.NVLINK
}  # fmt: skip
_DIGEST = re.compile(r"[0-9a-f]{64}")
_QUANTITY = re.compile(r"([0-9.]{1,20}(?:[eE][+-]?[0-9]{1,2})?)(m|k|[KMGTPE]i?|)")
_FACTORS: dict[str, Decimal | int] = {"": 1, "m": Decimal("0.001"), "k": 1000}
_FACTORS |= {letter: 1000 ** (at + 1) for at, letter in enumerate("KMGTPE")}
_FACTORS |= {f"{letter}i": 1024 ** (at + 1) for at, letter in enumerate("KMGTPE")}


@dataclass(frozen=True, slots=True)
class Machine:
    """What many nodes have alike. `islands` are the groups of GPUs that NVLink joins, largest first."""

    target: Target | None = None
    board: RunnerClass | None = None
    memory: int | None = None
    gpus: int = 0
    gpu_memory: int | None = None
    islands: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One node; `models` are the digests of model files that lie on its disk."""

    name: str
    machine: Machine = Machine()
    models: frozenset[str] = frozenset()
    zone: str | None = None
    latency_ms: float | None = None


def parse(document: Mapping[str, Any]) -> Node:
    """Return a node from the API's document."""
    meta = document.get("metadata") or {}
    labels, notes = meta.get("labels") or {}, meta.get("annotations") or {}
    allocatable = (document.get("status") or {}).get("allocatable") or {}
    machine = Machine(
        target=_TARGETS.get(labels.get("kubernetes.io/arch", "")),
        board=_board(labels),
        memory=quantity(allocatable.get("memory")),
        gpus=quantity(allocatable.get(GPU)) or 0,
        gpu_memory=_mebibytes(labels.get(f"{GPU}.memory")),
        islands=_islands(labels.get(f"{PREFIX}/nvlink")),
    )
    listed = _DIGEST.findall(str(notes.get(f"{PREFIX}/models", ""))[: 65 * _MAX_LISTED])
    return Node(
        str(meta.get("name", "")),
        machine,
        frozenset(listed),
        labels.get("topology.kubernetes.io/zone"),
        _milliseconds(labels.get(f"{PREFIX}/latency-ms")),
    )


def held(pod: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the node that a server was started on and the digest of its model, which it left there; or None."""
    node = (pod.get("spec") or {}).get("nodeName")
    digest = ((pod.get("metadata") or {}).get("annotations") or {}).get(MODEL, "")
    return (str(node), digest) if node and _DIGEST.fullmatch(str(digest)) else None


def quantity(text: object) -> int | None:
    """Return a number of the API (`8Gi`, `500m`, `2`), rounded down; None where it is none."""
    found = _QUANTITY.fullmatch(str(text)) if text is not None else None
    if found is None:
        return None
    try:
        return int(Decimal(found[1]) * _FACTORS[found[2]])
    except InvalidOperation:
        return None


def _board(labels: Mapping[str, str]) -> RunnerClass | None:
    if named := labels.get(f"{PREFIX}/board"):
        return RunnerClass(named) if named in BOARDS else None
    return next((board for (key, value), board in _BOARDS.items() if labels.get(key) == value), None)


def _islands(text: object) -> tuple[int, ...] | None:
    if not re.fullmatch(r"[0-9]{1,3}(-[0-9]{1,3}){0,15}", str(text)):
        return None
    return tuple(sorted(map(int, str(text).split("-")), reverse=True))


def _mebibytes(text: object) -> int | None:
    return int(str(text)) << 20 if re.fullmatch(r"[0-9]{1,9}", str(text)) else None


def _milliseconds(text: object) -> float | None:
    return float(str(text)) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", str(text)) else None
