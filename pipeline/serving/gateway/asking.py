"""One attempt at one endpoint: the request goes out, the endpoint's record is kept, a first sign of life comes back.

Rules: an answer counts as begun when its first events are there, or all of it where it is not streamed; a request that
is called off says nothing of the endpoint; whoever gets the answer closes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.serving.decision import Choice
from pipeline.serving.gateway import sse
from pipeline.serving.gateway.fleet import Fleet
from pipeline.serving.gateway.member import Member
from pipeline.serving.gateway.metrics import Metrics
from pipeline.serving.gateway.upstream import Client, Fault, Stream, UpstreamError, Whole


@dataclass(slots=True)
class Begun:
    """An answer that began; `block` are a stream's first events, `began` the attempt's start in seconds, `broken`
    says that the last events ended in an error."""

    member: Member
    found: Stream | Whole
    began: float
    queued: bool
    block: bytes = b""
    broken: bool = False
    closed: bool = False

    @property
    def is_rejection(self) -> bool:
        """Whether it says what is wrong with the request."""
        return isinstance(self.found, Whole) and self.found.status != 200

    def close(self) -> None:
        """Give the connection back, once."""
        if self.closed:
            return
        self.closed = True
        self.member.ended()
        if isinstance(self.found, Stream):
            self.found.close()


@dataclass(frozen=True)
class Asking:
    """What attempts need."""

    fleet: Fleet
    client: Client
    metrics: Metrics
    clock: Callable[[], float]

    async def attempt(self, choice: Choice, path: str, body: bytes, headers: dict[str, str], *, stream: bool) -> Begun:
        """Ask one endpoint; raises UpstreamError."""
        member, began = self.fleet.members[choice.endpoint], self.clock()
        queued = member.is_full
        member.began(began)
        try:
            with _watched(member):
                found, block, broken = await self._ask(member.entry.base + path, body, headers, stream)
        except BaseException as e:
            member.ended()
            self._note(member, e)
            raise
        member.worked()
        return Begun(member, found, began, queued, block, broken)

    async def _ask(
        self, url: str, body: bytes, headers: dict[str, str], stream: bool
    ) -> tuple[Stream | Whole, bytes, bool]:
        if not stream:
            return await self.client.whole(url, body, headers), b"", False
        found = await self.client.stream(url, body, headers)
        if isinstance(found, Whole):
            return found, b"", False
        try:
            return found, *events(await found.first())
        except BaseException:
            found.close()
            raise

    def failed(self, member: Member, error: UpstreamError) -> None:
        """Take note of an answer that broke off."""
        self._note(member, error)

    def _note(self, member: Member, error: BaseException) -> None:
        if not isinstance(error, UpstreamError):
            assert isinstance(error, (asyncio.CancelledError, Exception))
            member.released()
            return
        self.metrics.failures(member.name, error.fault).inc()
        if error.counts:
            member.failed(self.clock())
        else:
            member.released()


@contextmanager
def _watched(member: Member) -> Iterator[None]:
    """End what waits for an endpoint when that falls silent; raises UpstreamError then."""
    task = asyncio.current_task()
    assert task is not None, "attempts are tasks"
    member.attempts.add(task)
    try:
        yield
    except asyncio.CancelledError:
        if task not in member.lost:
            raise
        task.uncancel()
        raise UpstreamError(Fault.TIMEOUT, "it fell silent") from None
    finally:
        member.attempts.discard(task)
        member.lost.discard(task)


def events(block: bytes) -> tuple[bytes, bool]:
    """Return a stream's next events, and whether its server then reported an error.

    Raises:
        UpstreamError: the stream ended early, or there is nothing but an error.
    """
    if not block:
        raise UpstreamError(Fault.CLOSED, "the stream ended before the answer did")
    if not sse.is_error(block):
        return block, False
    healthy = sse.healthy(block)
    if not healthy:
        raise UpstreamError(Fault.ERROR_EVENT, "the server reports an error")
    return healthy, True
