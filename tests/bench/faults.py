"""What may go wrong while requests come in: each fault begins, and ends, at a time of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.bench.rig import LARGE, Rig

Step = Callable[[Rig], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """A fault: how it begins, how it ends, and what the rig must have for it."""

    name: str
    begin: Step
    end: Step
    tls: bool = False
    delays: bool = False


async def _nothing(_rig: Rig) -> None:
    pass


async def _kill_node(rig: Rig) -> None:
    await asyncio.to_thread(rig.servers["pi-1"].kill)


async def _start_node(rig: Rig) -> None:
    rig.start("pi-1")


async def _kill_large(rig: Rig) -> None:
    await asyncio.to_thread(rig.servers[LARGE].kill)


async def _start_large(rig: Rig) -> None:
    rig.start(LARGE)


async def _freeze(rig: Rig) -> None:
    _signal(rig, signal.SIGSTOP)


async def _thaw(rig: Rig) -> None:
    _signal(rig, signal.SIGCONT)


def _signal(rig: Rig, number: signal.Signals) -> None:
    node = rig.servers["pi-1"]
    assert node.process is not None
    for pid in (node.process.pid, *node.servers):
        os.kill(pid, number)


async def _slow(rig: Rig) -> None:
    rig.delay_s = 0.2


async def _fast(rig: Rig) -> None:
    rig.delay_s = 0.0


async def _hide_registry(rig: Rig) -> None:
    rig.shop.registry.rename(rig.shop.root / "away")


async def _show_registry(rig: Rig) -> None:
    (rig.shop.root / "away").rename(rig.shop.registry)


async def _renew(rig: Rig) -> None:
    await asyncio.to_thread(rig.issue)


async def _switch(rig: Rig) -> None:
    await asyncio.to_thread(rig.publish_next)


async def _switch_to_bad(rig: Rig) -> None:
    await asyncio.to_thread(rig.publish_bad)


FAULTS = (
    Fault("a node is killed", _kill_node, _start_node),
    Fault("the large server is killed", _kill_large, _start_large),
    Fault("a node freezes", _freeze, _thaw),
    Fault("a slow network", _slow, _fast, delays=True),
    Fault("the registry is gone", _hide_registry, _show_registry),
    Fault("certificates are renewed", _renew, _renew, tls=True),
    Fault("a new release", _switch, _nothing),
    Fault("a bad release", _switch_to_bad, _nothing),
)
