"""What a pod says it serves.

Rules: a pod that says nothing of a release is none of ours; one that says something must say it whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.control.scheduler.nodes import MODEL, PREFIX

POOL, VARIANT, RELEASE, MANIFEST, NEAR = (f"{PREFIX}/{n}" for n in ("pool", "variant", "release", "manifest", "near"))
_OPTION = "--variant="


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a server's pod is to serve.

    `version` and `manifest` pin the release where the pod names one; `near` is the zone it should be close to.
    """

    variant: str
    version: int | None = None
    manifest: str | None = None
    model: str | None = None
    near: str | None = None


def parse(pod: Mapping[str, Any]) -> Wanted | str | None:
    """Return what a pod is to serve, what is wrong with what it says, or None where it is none of ours."""
    meta = pod.get("metadata") or {}
    labels, notes = meta.get("labels") or {}, meta.get("annotations") or {}
    if POOL not in labels and not {VARIANT, RELEASE, MANIFEST, MODEL} & notes.keys():
        return None
    variant = notes.get(VARIANT) or next(_options(pod), None)
    version, manifest = notes.get(RELEASE), notes.get(MANIFEST)
    if variant is None:
        return f"the pod does not say which variant it serves: annotation {VARIANT}"
    if version is not None and not re.fullmatch(r"[1-9][0-9]{0,9}", version):
        return f"annotation {RELEASE} is no version"
    if manifest is not None and (version is None or not re.fullmatch(r"[0-9a-f]{64}", manifest)):
        return f"annotation {MANIFEST} is no digest, or {RELEASE} is missing"
    return Wanted(variant, int(version) if version else None, manifest, notes.get(MODEL), notes.get(NEAR))


def _options(pod: Mapping[str, Any]) -> Iterator[str]:
    for container in (pod.get("spec") or {}).get("containers") or ():
        for argument in container.get("args") or ():
            if str(argument).startswith(_OPTION):
                yield str(argument).removeprefix(_OPTION)
