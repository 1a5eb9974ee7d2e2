"""A hold on a Lease of Kubernetes, as the cluster's own controllers have theirs: one holder at a time.

Rules: a hold ends unless it is renewed; whoever waits takes it once it saw nothing change for as long as the holder
said, by its own clock, so that clocks need not agree; of two that take it at once the API server takes one write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.ports.kube import LEASE, Cluster, Object

SOMEBODY = "somebody"  # who was first, where the API server did not say


@dataclass
class Hold:
    """One holder's hold, which lasts `seconds` without being renewed; `clock` gives seconds that never run back."""

    cluster: Cluster
    namespace: str
    name: str
    holder: str
    seconds: float
    clock: Callable[[], float]
    _seen: tuple[str, float] | None = field(default=None, init=False)

    def take(self) -> str | None:
        """Take or renew it; return None where it is held now, else who holds it. Raises ToolError."""
        found = self.cluster.find(LEASE, self.name, self.namespace)
        if found is None:
            made = self.cluster.create(self._made({}, self.holder))
        elif (other := found["spec"].get("holderIdentity")) not in {self.holder, None, ""} and not self._silent(found):
            return str(other)
        else:
            made = self.cluster.replace(self._made(found, self.holder))
        return None if made else SOMEBODY

    def give(self) -> None:
        """Let go, where it is held. Raises ToolError."""
        found = self.cluster.find(LEASE, self.name, self.namespace)
        if found is not None and found["spec"].get("holderIdentity") == self.holder:
            self.cluster.replace(self._made(found, ""))

    def _silent(self, found: Object) -> bool:
        """Whether a holder did not renew it for as long as it said, since this one first looked."""
        version, now = found["metadata"]["resourceVersion"], self.clock()
        if self._seen is None or self._seen[0] != version:
            self._seen = version, now
        return now - self._seen[1] >= float(found["spec"].get("leaseDurationSeconds") or self.seconds)

    def _made(self, found: Object, holder: str) -> Object:
        before: dict[str, Any] = found.get("spec") or {}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        passes = bool(before.get("holderIdentity")) and holder not in {"", before["holderIdentity"]}
        spec = {
            **before,
            "holderIdentity": holder,
            "leaseDurationSeconds": max(round(self.seconds), 1),
            "acquireTime": before.get("acquireTime", now) if before.get("holderIdentity") == self.holder else now,
            "renewTime": now,
            "leaseTransitions": (before.get("leaseTransitions") or 0) + passes,
        }
        meta = found.get("metadata") or {"name": self.name, "namespace": self.namespace}
        return {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": meta, "spec": spec}
