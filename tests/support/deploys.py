"""A site, and small real releases rendered for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.deploy import base
from pipeline.deploy.render import Wanted, render
from pipeline.deploy.settings import Settings
from pipeline.manifest.rules import Accepted, Seen, accept_release
from pipeline.ports.kube import Object
from tests.support.releases import LINE, NOW, Publisher, checked_files

ROOT = Path(__file__).parents[2]
BASE = ROOT / "manifests/k8s"
IMAGES = {
    name: f"registry.example/{name}@sha256:{digit * 64}"
    for name, digit in (("edge-release", "a"), ("edge-release-large", "b"), ("kube-scheduler", "c"))
}
TRUST = {"trust.yaml": "line: demo\n"}
PROMPT, ANSWER = "is it there?", "yes"
_GOLDEN = {"id": "g1", "family": "lookup", "prompt": PROMPT, "expected": ANSWER, "max_tokens": 4}
GOLDEN = json.dumps(_GOLDEN).encode() + b"\n"
FILES = {
    "large-x86_64/shards.json": b"{}",
    **{f"{name}/golden.jsonl": GOLDEN for name in ("tiny-edge-arm64", "large-x86_64")},
}
GIB = 1 << 30


def settings(**keys: Any) -> Settings:
    """Return a site's settings."""
    found: dict[str, Any] = {"registry": "s3://models/releases", "images": IMAGES, **keys}
    return Settings.model_validate(found)


def measure(document: dict[str, Any]) -> None:
    """Add measurements to a manifest: a GiB for each variant, the large one on four GPUs; and what answered right."""
    spread = {"p50": 1.0, "p95": 2.0}
    for entry in document["predicate"]["variants"]:
        entry["measurements"] = [
            {
                "variant": entry["name"], "runner": "host", "ttft_ms": spread, "per_token_ms": spread,
                "inference_ms": spread, "peak_rss_bytes": GIB, "machine": {},
            }
        ]  # fmt: skip
        entry["evidence"] = [
            {
                "variant": entry["name"], "runner": "host", "files": checked_files(entry), "golden_sha256": "0" * 64, "engine": {},
                "deterministic": True, "answers": [{"id": "g1", "tokens": [1], "passed": True}],
                "quality": {"exact_match": 1.0, "mean_kl": 0.0, "p99_kl": 0.0, "perplexity_ratio": 1.0, "families": {}},
                "memory": {"model_bytes": 1, "bytes_per_token": 1},
            }
        ]  # fmt: skip
        if entry["tier"] == "large":
            entry["model"]["tensor_parallel"] = 4


@dataclass
class Line:
    """A release line whose releases were accepted as a consumer does."""

    folder: Path
    publisher: Publisher = field(default_factory=Publisher)

    def accepted(self, version: int, **release: Any) -> Accepted:
        """Return a release."""
        given: dict[str, Any] = {"files": FILES, "mutate": measure, **release}
        signed = self.publisher.release(self.folder / f"release-{version}", version, **given)
        return accept_release(
            signed.bundles, opener=self.publisher.opener, line=LINE, version=version, seen=Seen(), now=NOW
        )


def rendered(release: Accepted, site: Settings, before: Sequence[Object] = ()) -> list[Object]:
    """Return a release rendered from the repository's base."""
    return render(base.load(BASE, site.components), Wanted(release, TRUST, site, before))


def named(documents: Sequence[Object], kind: str, name: str) -> Object:
    """Return one object."""
    (found,) = [d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return found
