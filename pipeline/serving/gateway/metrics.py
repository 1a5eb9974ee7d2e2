"""What the gateway counts, for Prometheus.

Rules: every label is bounded: pools, reasons, kinds, faults, and endpoints of the settings; no label holds anything a
client wrote. The objectives' bounds (`slo`) are among the buckets of seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from pipeline.peers.slo import FAULTS
from pipeline.serving.gateway.tallies import Counters, Histograms

_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)

Row = tuple[dict[str, str], float]
_Family = TypeVar("_Family", Counters, Histograms)


class Metrics:
    """One gateway's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.duration = self._made(
            Histograms(
                "gateway_request_duration_seconds",
                "From a request's first byte to its answer's last.",
                ["kind", "pool", "outcome", "stream"],
                bounds=_SECONDS,
            )
        )
        self.first_token = self._made(
            Histograms(
                "gateway_time_to_first_token_seconds",
                "From a streamed request's first byte to its answer's.",
                ["pool"],
                bounds=_SECONDS,
            )
        )
        self.route = self._made(
            Counters("gateway_route_total", "Requests by where they went and why.", ["pool", "reason"])
        )
        self.variant = self._made(
            Counters("gateway_variant_total", "Requests by the variant that was asked.", ["variant"])
        )
        self.refused = self._made(
            Counters("gateway_refused_total", "Requests that were refused, by the error's code.", ["code"])
        )
        for code in FAULTS:
            self.refused(code)  # there from the start, for the rate of what was never seen before is unknown
        self.failures = self._made(
            Counters("gateway_upstream_failures_total", "Attempts that failed.", ["endpoint", "fault"])
        )
        self.hedges = Counter("gateway_hedges_total", "Requests that a second endpoint was asked for.", registry=r)
        self.continuations = self._made(
            Counters(
                "gateway_continuations_total",
                "Answers that broke off and were continued: by the same file, another one, or not at all.",
                ["outcome"],
            )
        )
        self.prompt_tokens = self._made(
            Histograms(
                "gateway_prompt_tokens",
                "Tokens of prompts, by how they were counted: by the tokenizer, or bounded by their bytes.",
                ["counted"],
                bounds=_TOKENS,
            )
        )
        self.tokens = self._made(Counters("gateway_generated_tokens_total", "Tokens that were generated.", ["pool"]))
        self.release_problems = Counter(
            "gateway_release_problems_total", "Looks at the channel that found no release to accept.", registry=r
        )

    def _made(self, family: _Family) -> _Family:
        self.registry.register(family)
        return family

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
