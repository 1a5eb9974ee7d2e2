"""The node's figures for Prometheus.

Rules: a figure that cannot be measured is absent, not zero; names and labels are fixed, none comes from a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.peers.status import ServerStatus, State
from pipeline.ports.machine import FLAGS
from pipeline.ports.nvml import Use
from pipeline.serving.node.state import NodeState


def text(
    state: NodeState, status: ServerStatus, engine_queue: tuple[int, int] | None, gpus: Sequence[Use] = ()
) -> bytes:
    """Return the figures in Prometheus' text format.

    Args:
        engine_queue: requests that llama-server itself says it decodes and holds back, where it said so.
    """
    registry = CollectorRegistry()
    registry.register(_Figures([*_figures(state, status, engine_queue), *_gpus(gpus)]))
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, figures: list[Metric]) -> None:
        self._figures = figures

    def collect(self) -> list[Metric]:
        return self._figures


def _figures(state: NodeState, status: ServerStatus, engine_queue: tuple[int, int] | None) -> Iterator[Metric]:
    yield from _gauge("cpu_ratio", "Share of all processors in use", status.cpu)
    yield from _gauge("temperature_celsius", "Temperature of the hottest zone", status.temperature_c)
    held_back = GaugeMetricFamily("edge_node_throttled", "1 while the processor is held back", labels=["flag"])
    for flag in FLAGS:
        held_back.add_metric([flag], float(flag in status.throttled))
    yield held_back
    standing = GaugeMetricFamily("edge_node_state", "1 for the state the node is in", labels=["state"])
    for name in State:
        standing.add_metric([name], float(name is status.state))
    yield standing
    yield from _gauge("slots", "Requests that are decoded at once", status.slots)
    yield from _gauge("slots_busy", "Requests that are being decoded", status.busy)
    yield from _gauge("queue_length", "Requests that wait for a slot", status.queued)
    yield from _gauge("context_tokens", "Tokens of a slot", status.context)
    yield from _gauge("engine_processing", "Requests the model's server decodes", engine_queue and engine_queue[0])
    yield from _gauge("engine_deferred", "Requests the model's server holds back", engine_queue and engine_queue[1])
    yield from _gauge(
        "release_version", "Release that is served", status.served.release_version if status.served else None
    )
    yield from _gauge(
        "channel_version", "Release the channel points to", state.channel.version if state.channel else None
    )
    yield from _gauge("behind", "1 while another release is served than the channel's", _behind(state))
    yield CounterMetricFamily("edge_node_restarts", "Servers that ended while they were ready", value=state.restarts)
    yield CounterMetricFamily("edge_node_starts", "Servers started", value=state.started)
    yield CounterMetricFamily("edge_node_refused_releases", "Releases refused", value=state.refusals)
    yield CounterMetricFamily("edge_node_fetched_bytes", "Bytes of releases from the registry", value=state.fetched)
    yield CounterMetricFamily("edge_node_reused_bytes", "Bytes of releases that were here", value=state.reused)


def _gauge(name: str, help_: str, value: float | None) -> Iterator[Metric]:
    if value is not None:
        yield GaugeMetricFamily(f"edge_node_{name}", help_, value=float(value))


def _gpus(gpus: Sequence[Use]) -> Iterator[Metric]:
    told: list[tuple[str, str, Callable[[Use], int | None]]] = [
        ("edge_node_gpu_memory_free_bytes", "Memory of a GPU that is free", lambda gpu: gpu.free_bytes),
        ("edge_node_gpu_memory_bytes", "Memory of a GPU", lambda gpu: gpu.memory_bytes),
        ("edge_node_nvlink_active", "Active NVLinks of a GPU", lambda gpu: gpu.links if len(gpus) > 1 else None),
    ]
    for name, help_, of in told:
        family = GaugeMetricFamily(name, help_, labels=["gpu"])
        for gpu in gpus:
            if (value := of(gpu)) is not None:
                family.add_metric([str(gpu.index)], float(value))
        if family.samples:
            yield family


def _behind(state: NodeState) -> float | None:
    if state.channel is None or state.ready is None:
        return None
    return float(state.ready.pin != state.channel)
