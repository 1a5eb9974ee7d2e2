"""The extender's figures for Prometheus.

Rules: names and labels are fixed, none comes from a request; what is unknown is absent.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pipeline.control.scheduler.releases import Releases
from pipeline.control.scheduler.rules import Refusal, Why
from pipeline.control.scheduler.watch import Nodes

VERBS = ("filter", "prioritize")
_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)


class Metrics:
    """Counted as requests are answered; the gauges are read when asked."""

    def __init__(self) -> None:
        """Begin at zero."""
        self._registry = CollectorRegistry()
        took = Histogram(
            "edge_scheduler_request_seconds", "Time to answer kube-scheduler", ["verb"], buckets=_BUCKETS,
            registry=self._registry,
        )  # fmt: skip
        self.took = {verb: took.labels(verb) for verb in VERBS}
        refused = Counter("edge_scheduler_refused_nodes", "Nodes refused", ["why"], registry=self._registry)
        self._refused = {why: refused.labels(why) for why in Why}
        self.malformed = Counter("edge_scheduler_malformed", "Requests not understood", registry=self._registry)
        self._nodes = Gauge("edge_scheduler_nodes", "Nodes known", registry=self._registry)
        self._age = Gauge("edge_scheduler_nodes_age_seconds", "Time since nodes were listed", registry=self._registry)
        self._release = Gauge("edge_scheduler_release_version", "The channel's release", registry=self._registry)

    def count(self, found: Iterable[Refusal | None]) -> None:
        """Count the nodes that were refused."""
        for refusal in found:
            if refusal is not None:
                self._refused[refusal.why].inc()

    def text(self, nodes: Nodes, releases: Releases) -> bytes:
        """Return the figures in Prometheus' text format."""
        self._nodes.set(len(nodes.found))
        self._age.set(float("nan") if nodes.age is None else nodes.age)
        self._release.set(releases.current.version if releases.current else 0)
        return generate_latest(self._registry)
