"""One run of a scenario."""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.lab.simulation.controllers import Controller, attach
from pipeline.lab.simulation.events import Events
from pipeline.lab.simulation.faults import Faults
from pipeline.lab.simulation.flow import Flow
from pipeline.lab.simulation.past import past
from pipeline.lab.simulation.record import Record
from pipeline.lab.simulation.scenario import Scenario
from pipeline.lab.simulation.sites import Sites, build
from pipeline.lab.simulation.traffic import Arrivals, Block
from pipeline.lab.simulation.trip import Trip

Progress = Callable[[float, int], object]


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run leaves: `area` is the sum over time of the requests on their way, in request seconds."""

    scenario: Scenario
    seed: int
    seconds: float
    arrived: int
    area: float
    record: Record
    sites: Sites
    faults: Faults
    controllers: list[Controller]


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Let Python look for cycles seldom, and not among the fleet: requests make none, and looking takes a tenth."""
    usual = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def run(
    scenario: Scenario, seed: int, *, requests: int | None = None, blocks: Iterable[Block] | None = None,
    progress: Progress | None = None,
) -> Ran:  # fmt: skip
    """Simulate a scenario, or at most some requests of it; `blocks` in place of drawn traffic, to replay a log.

    Those of the warm-up are not among the `requests`; `progress` hears of the simulated seconds and of them so far.
    """
    events, flow = Events(), None

    def ended(trip: Trip) -> None:
        assert flow is not None
        flow.ended(trip)

    sites = build(scenario, events, ended)
    flow = Flow(scenario, events, sites.doors)
    faults = Faults(sites, flow, events)
    faults.plan(scenario, seed)
    controllers = attach(scenario, sites, events, past(scenario, seed))
    for server in sites.servers:
        events.at(scenario.warmup_s, lambda s: s.warmed(events.now), server)
    arrive, until = flow.arrive, scenario.hours * 3600
    last, counted = 0.0, 0
    with _seldom_collected():
        for block in Arrivals(scenario, seed, requests).blocks() if blocks is None else blocks:
            for row in block.rows():
                events.run(row[0])
                arrive(row)
            if block.at:
                last = block.at[-1]
            counted += len(block.at) - bisect_left(block.at, scenario.warmup_s)
            if progress is not None:
                progress(last, counted)
    seconds = last if counted == requests else max(last, until)
    events.run(seconds)
    area, faults.over = flow.area, True
    for controller in controllers:
        controller.until = seconds
    for server in sites.servers:
        server.paid_to(seconds)
    events.drain()
    return Ran(scenario, seed, seconds, flow.arrived, area, flow.record, sites, faults, controllers)
