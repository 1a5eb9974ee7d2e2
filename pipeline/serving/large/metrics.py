"""The large server's figures for Prometheus, under vLLM's names, so that one dashboard reads both engines.

Names: https://docs.vllm.ai/en/latest/usage/metrics.html; labels are fixed, none comes from a request.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pipeline.serving.large.batching import Load

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


class Metrics:
    """What is counted; each is bound to the model's name once."""

    def __init__(self, model: str, load: Callable[[], Load]) -> None:
        """Ask `load` whenever the figures are read."""
        self._registry, self._load, self._model = CollectorRegistry(), load, model
        self._running = self._gauge("num_requests_running", "Requests that are decoded")
        self._waiting = self._gauge("num_requests_waiting", "Requests that wait")
        self._cache = self._gauge("kv_cache_usage_perc", "Share of the cache in use, 0 to 1")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self.generated_tokens = self._counter("generation_tokens", "Tokens generated")
        self.first_token = self._histogram("time_to_first_token_seconds", "To the first token", SECONDS)
        self.step = self._histogram("inter_token_latency_seconds", "Between tokens", STEP_SECONDS)
        self.whole = self._histogram("e2e_request_latency_seconds", "To the last token", SECONDS)
        done = Counter(
            "vllm:request_success", "Answers given, by what ended them", ["model_name", "finished_reason"],
            registry=self._registry,
        )  # fmt: skip
        self.finished = {reason: done.labels(model, reason) for reason in ("stop", "length", "abort")}

    def text(self) -> bytes:
        """Return the figures in Prometheus' text format."""
        load = self._load()
        self._running.set(load.running)
        self._waiting.set(load.waiting)
        self._cache.set(load.cache)
        return generate_latest(self._registry)

    def _gauge(self, name: str, said: str) -> Gauge:
        return Gauge(f"vllm:{name}", said, ["model_name"], registry=self._registry).labels(self._model)

    def _counter(self, name: str, said: str) -> Counter:
        return Counter(f"vllm:{name}", said, ["model_name"], registry=self._registry).labels(self._model)

    def _histogram(self, name: str, said: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(f"vllm:{name}", said, ["model_name"], buckets=buckets, registry=self._registry)
        return made.labels(self._model)
