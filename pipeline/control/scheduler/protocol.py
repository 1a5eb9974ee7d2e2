"""kube-scheduler's extender protocol, v1.

Source: https://github.com/kubernetes/kube-scheduler/blob/master/extender/v1/types.go. Go reads keys
whatever their case, and writes them in either.

Rules: what is read is bounded; node names alone are taken (`nodeCacheCapable`), for whole nodes would be megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.control.scheduler.rules import Refusal

MAX_BODY = 4 << 20  # bytes; a pod has at most 1.5 MiB, 5,000 names of 253 bytes 1.3 MiB
MAX_NODES = 10_000
_MAX_TEXT = 253


class MalformedError(ValueError):
    """What was asked is not in the protocol; its text says why."""


@dataclass(frozen=True)
class Asked:
    """A pod, and the nodes that are left to it."""

    pod: Mapping[str, Any]
    nodes: tuple[str, ...]


def parse(body: bytes) -> Asked:
    """Return what kube-scheduler asks; raises MalformedError."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise MalformedError("the request is not JSON") from e
    if not isinstance(document, dict):
        raise MalformedError("the request is no ExtenderArgs")
    found = {str(key).lower(): value for key, value in document.items()}
    pod, names = found.get("pod"), found.get("nodenames")
    if not isinstance(pod, dict) or not is_sound(pod):
        raise MalformedError("the request has no pod")
    if not isinstance(names, list):
        raise MalformedError("the request has no node names: set nodeCacheCapable in the scheduler's configuration")
    if len(names) > MAX_NODES or not all(isinstance(n, str) and len(n) <= _MAX_TEXT for n in names):
        raise MalformedError("the request has too many node names, or what is none")
    return Asked(pod, tuple(names))


def is_sound(pod: Mapping[str, Any]) -> bool:
    """Return whether what is looked at in a pod has the API's types."""
    meta, spec = pod.get("metadata") or {}, pod.get("spec") or {}
    if not isinstance(meta, dict) or not isinstance(spec, dict):
        return False
    texts = [meta.get("labels") or {}, meta.get("annotations") or {}]
    containers = spec.get("containers") or []
    return (
        all(isinstance(t, dict) and all(isinstance(v, str) for v in t.values()) for t in texts)
        and isinstance(containers, list)
        and all(isinstance(c, dict) and isinstance(c.get("args") or [], list) for c in containers)
    )


def filtered(found: Mapping[str, Refusal | None]) -> bytes:
    """Return the answer to `filter`: schedulers before 1.22 read FailedNodes alone; no eviction would mend a reason."""
    failed = {name: refusal.text for name, refusal in found.items() if refusal is not None}
    return _encoded(
        {
            "NodeNames": [name for name, refusal in found.items() if refusal is None],
            "FailedNodes": failed,
            "FailedAndUnresolvableNodes": failed,
            "Error": "",
        }
    )


def failed(message: str) -> bytes:
    """Return the answer to a `filter` that could not be read: the pod is not scheduled."""
    return _encoded({"NodeNames": [], "FailedNodes": {}, "Error": message})


def prioritized(scores: Mapping[str, int]) -> bytes:
    """Return the answer to `prioritize`."""
    return _encoded([{"Host": name, "Score": score} for name, score in scores.items()])


def _encoded(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
