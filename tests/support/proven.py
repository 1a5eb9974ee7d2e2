"""Releases whose variants carry signed evidence, for tests of what asks for it; and the cluster they are placed in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.catalog.names import RunnerClass, Variant
from pipeline.manifest import attestation
from pipeline.manifest.evidence import File
from pipeline.registry.publish import SignedRelease
from tests.support.evidence import evidence, measurement
from tests.support.releases import EDGE, SERVER, Publisher, checked_files

Proof = Mapping[str, tuple[RunnerClass, ...]]
ON_BOARDS: Proof = {
    EDGE: (RunnerClass.EMULATED, RunnerClass.PI5),
    "tiny-edge-x86_64": (RunnerClass.HOST,),
    SERVER: (RunnerClass.NVLINK,),
}
EMULATED: Proof = {**ON_BOARDS, EDGE: (RunnerClass.EMULATED,)}
GIB = 1 << 30


def release(
    publisher: Publisher,
    folder: Path,
    version: int = 1,
    *,
    proof: Proof = ON_BOARDS,
    memory: int = GIB,
    gpus: int = 4,
    **options: Any,
) -> SignedRelease:
    """Return a signed release.

    Args:
        proof: on which runner classes each variant passed.
        memory: the peak bytes that each took.
        gpus: over how many the large variant is split.
    """

    def mutate(document: dict[str, Any]) -> None:
        for entry in document["predicate"]["variants"]:
            if entry["name"] == SERVER:
                entry["model"]["tensor_parallel"] = gpus
            for runner in proof.get(entry["name"], ()):
                _prove(entry, runner, memory, publisher)

    return publisher.release(folder, version, files={f"{SERVER}/shards.json": b"{}"}, mutate=mutate, **options)


def _prove(entry: dict[str, Any], runner: RunnerClass, memory: int, publisher: Publisher) -> None:
    variant = Variant.parse(entry["name"])
    files = [File.model_validate(f) for f in checked_files(entry)]
    found = evidence(variant, runner=runner).model_copy(update={"files": files})
    measured = measurement(variant, runner=runner).model_copy(update={"peak_rss_bytes": memory})
    entry["evidence"].append(found.model_dump(mode="json", exclude_none=True))
    entry["measurements"].append(measured.model_dump(mode="json", exclude_none=True))
    bundle = json.loads(publisher.sign(attestation.build(found, measured)))
    entry["attestations"].append({"runner": runner, "bundle": bundle})


def pi(name: str = "pi-1", **annotations: str) -> dict[str, Any]:
    """Return a Raspberry Pi as the API shows it."""
    return node(name, {"kubernetes.io/arch": "arm64", "edge": "pi"}, {"memory": "8062364Ki"}, annotations)


def nvlink(name: str = "nv-1", gpus: int = 4, joined: str | None = None) -> dict[str, Any]:
    """Return a machine with GPUs, of which NVLink joins some."""
    labels = {"kubernetes.io/arch": "amd64", "gpu": "nvlink"}
    labels |= {"edge-release.dev/nvlink": joined} if joined is not None else {}
    return node(name, labels, {"memory": "512Gi", "nvidia.com/gpu": str(gpus)})


def node(
    name: str, labels: Mapping[str, str], allocatable: Mapping[str, str], annotations: Mapping[str, str] = {}
) -> dict[str, Any]:
    """Return a node; annotations are given without their prefix."""
    notes = {f"edge-release.dev/{key}": value for key, value in annotations.items()}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": dict(labels), "annotations": notes},
        "status": {"allocatable": dict(allocatable)},
    }


def pod(name: str = "server", variant: str | None = EDGE, **annotations: str) -> dict[str, Any]:
    """Return a server's pod; annotations are given without their prefix."""
    notes = {f"edge-release.dev/{key}": value for key, value in annotations.items()}
    args = [f"--variant={variant}"] if variant else []
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"edge-release.dev/pool": "edge"}, "annotations": notes},
        "spec": {"containers": [{"name": "server", "image": "server", "args": args}]},
    }
