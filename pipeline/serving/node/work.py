"""What a node does beside its loop: tasks, and threads for what blocks.

Rules: a fault of a task is not swallowed: whoever waits for events gets it; work on the disk runs one piece at a time;
a thread does not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from pipeline.serving.node.events import Event

T = TypeVar("T")


class Work:
    """Tasks, and the events that they end in."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._woken = asyncio.Event()
        self._broken: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._disk = asyncio.Lock()

    def post(self, event: Event) -> None:
        """Tell of an event."""
        self._events.append(event)
        self._woken.set()

    async def events(self, patience_s: float) -> list[Event]:
        """Return what happened, after at most some seconds; raises what a task failed with."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), patience_s)
        self._woken.clear()
        if self._broken is not None:
            raise self._broken
        found = list(self._events)
        self._events.clear()
        return found

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside the loop."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def end(self) -> None:
        """Call off what is still being done."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def on_disk(self, work: Callable[[], T]) -> T:
        """Do what works on the disk, and return its result."""
        async with self._disk:
            return await threaded(work)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._broken = task.exception()
            self._woken.set()


async def threaded(work: Callable[[], T]) -> T:
    """Do what blocks, and return its result."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            value = work()
        except BaseException as e:  # handed to whoever waits
            tell(result.set_exception, e)
        else:
            tell(result.set_result, value)

    def tell(how: Callable[[Any], None], what: Any) -> None:
        def told() -> None:
            if not result.done():
                how(what)

        if not loop.is_closed():
            loop.call_soon_threadsafe(told)

    threading.Thread(target=run, daemon=True).start()
    return await result
