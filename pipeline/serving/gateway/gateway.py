"""The gateway as a whole: a watcher with the proxy that answers by what it knows."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.serving.gateway.asking import Asking
from pipeline.serving.gateway.proxy import Proxy
from pipeline.serving.gateway.tokens import Counter
from pipeline.serving.gateway.tracing import Off, Tracing
from pipeline.serving.gateway.watcher import Watcher


@dataclass
class Gateway(Watcher):
    """One running gateway."""

    tracing: Tracing = field(default_factory=Off)
    proxy: Proxy = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        add = self.metrics.gauges
        add("gateway_in_flight", "Requests at work.", [], lambda: [({}, float(self.proxy.in_flight))])
        add("gateway_waiting", "Requests that wait for a place.", [], lambda: [({}, float(len(self.proxy.waiting)))])

    async def start(self) -> None:
        """Look at the release and the endpoints, and be able to answer."""
        await super().start()
        parts = self.parts
        asking = Asking(self.fleet, self.client, self.metrics, parts.clock)
        self.proxy = Proxy(
            parts.settings, asking, parts.callers, self.counter, self.tracing, parts.write, parts.new_id, parts.now
        )

    async def stop(self) -> None:
        """End what runs beside the requests."""
        await super().stop()
        self.tracing.close()

    def use(self, found: Counter) -> None:
        """Count by this from now on."""
        super().use(found)
        self.proxy.counter = found
