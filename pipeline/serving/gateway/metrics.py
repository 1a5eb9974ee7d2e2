"""What the gateway counts, for Prometheus.

Rules: every label is bounded: pools, reasons, kinds, faults, and endpoints of the settings; a metric's children are
bound once, for looking labels up costs more than counting; no label holds anything a client wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)

Row = tuple[dict[str, str], float]


class Metrics:
    """One gateway's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.duration = _bound(
            Histogram(
                "gateway_request_duration_seconds",
                "From a request's first byte to its answer's last.",
                ["kind", "pool", "outcome"],
                buckets=_SECONDS,
                registry=r,
            )
        )
        self.first_token = _bound(
            Histogram(
                "gateway_time_to_first_token_seconds",
                "From a streamed request's first byte to its answer's.",
                ["pool"],
                buckets=_SECONDS,
                registry=r,
            )
        )
        self.route = _bound(
            Counter("gateway_route_total", "Requests by where they went and why.", ["pool", "reason"], registry=r)
        )
        self.refused = _bound(
            Counter("gateway_refused_total", "Requests that were refused, by the error's code.", ["code"], registry=r)
        )
        self.failures = _bound(
            Counter("gateway_upstream_failures_total", "Attempts that failed.", ["endpoint", "fault"], registry=r)
        )
        self.hedges = Counter("gateway_hedges_total", "Requests that a second endpoint was asked for.", registry=r)
        self.continuations = _bound(
            Counter(
                "gateway_continuations_total",
                "Answers that broke off and were continued: by the same file, another one, or not at all.",
                ["outcome"],
                registry=r,
            )
        )
        self.prompt_tokens = _bound(
            Histogram(
                "gateway_prompt_tokens",
                "Tokens of prompts, by how they were counted: by the tokenizer, or bounded by their bytes.",
                ["counted"],
                buckets=_TOKENS,
                registry=r,
            )
        )
        self.tokens = _bound(
            Counter("gateway_generated_tokens_total", "Tokens that were generated.", ["pool"], registry=r)
        )
        self.release_problems = Counter(
            "gateway_release_problems_total", "Looks at the channel that found no release to accept.", registry=r
        )

    def gauges(self, name: str, text: str, labels: list[str], rows: Callable[[], Iterable[Row]]) -> None:
        """Add gauges that are computed when they are read."""
        self.registry.register(_Computed(name, text, labels, rows))

    def exposition(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self.registry)


class _Computed:
    def __init__(self, name: str, text: str, labels: list[str], rows: Callable[[], Iterable[Row]]) -> None:
        self._family = name, text, labels
        self._rows = rows

    def collect(self) -> Iterable[Metric]:
        name, text, labels = self._family
        family = GaugeMetricFamily(name, text, labels=labels)
        for values, value in self._rows():
            family.add_metric([values[label] for label in labels], value)
        yield family


def _bound(metric: Any) -> Callable[..., Any]:
    """Return a function from labels to a metric's child, which remembers them."""

    @cache
    def child(*labels: str) -> Any:
        return metric.labels(*labels)

    return child
