"""An endpoint picker in this process between scripted servers and a data plane that speaks its protocol."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from google.protobuf.struct_pb2 import Struct

from pipeline.serving.picker import messages
from pipeline.serving.picker import protocol as pb
from pipeline.serving.picker.exchange import Exchange
from pipeline.serving.picker.picker import Picker
from tests.support import gateways
from tests.support.gateways import Site
from tests.support.upstreams import Behaviour

BUFFERED, STREAMED = pb.BUFFERED, pb.FULL_DUPLEX_STREAMED


@dataclass
class Refused:
    """An immediate answer."""

    status: int
    error: dict[str, Any]
    headers: dict[str, str]


@dataclass
class Sent:
    """A request that goes on: to addresses, with headers and a body."""

    addresses: list[str]
    headers: dict[str, str]
    removed: list[str]
    body: bytes


@dataclass
class Conversation:
    """One request as a data plane carries it; `mode` None stands for a data plane that does not say."""

    exchange: Exchange
    mode: int | None = BUFFERED
    subset: list[str] | None = None

    async def ask(
        self, body: bytes, path: str = gateways.CHAT, method: str = "POST", pieces: int = 1, **headers: str
    ) -> Sent | Refused:
        """Send a request's head and body."""
        given = {":method": method, ":path": path, **{k.replace("_", "-"): v for k, v in headers.items()}}
        message = head(given, end=not body)
        subset = _metadata("envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset", self.subset)
        message.metadata_context.CopyFrom(subset)
        if self.mode is not None:
            message.protocol_config.request_body_mode = self.mode
        replies = await self.exchange.replies(message)
        if body and not any(r.HasField("immediate_response") for r in replies):
            cuts = [len(body) * i // pieces for i in range(pieces + 1)]
            for start, end in pairwise(cuts):
                part = pb.HttpBody(body=body[start:end], end_of_stream=end == len(body))
                replies += await self.exchange.replies(pb.ProcessingRequest(request_body=part))
        return _outcome(replies)

    async def answer(self, status: int = 200, served: str | None = None) -> dict[str, str] | Refused:
        """Send an answer's head; return the headers its client sees besides."""
        message = pb.ProcessingRequest(
            response_headers=pb.HttpHeaders(headers=_headers({":status": str(status)})),
            metadata_context=_metadata("envoy.lb", "x-gateway-destination-endpoint-served", served),
        )
        (reply,) = await self.exchange.replies(message)
        if reply.HasField("immediate_response"):
            return _refused(reply)
        return _named(reply.response_headers.response.header_mutation)


@dataclass
class Running:
    """A picker that has heard of its servers."""

    picker: Picker
    site: Site

    def conversation(self, **fields: Any) -> Conversation:
        return Conversation(Exchange(self.picker), **fields)

    def address(self, name: str) -> str:
        return self.picker.addresses.found[name]


@asynccontextmanager
async def running(
    root: Path, edge: dict[str, Behaviour], nvlink: dict[str, Behaviour] | None = None, **given: Any
) -> AsyncIterator[Running]:
    """Yield a picker before servers; `given` goes to `gateways.site`."""
    async with gateways.site(root, edge, nvlink, **given) as at:
        picker = Picker(at.parts)
        await picker.start()
        try:
            await gateways.until_known(picker)
            await gateways.until(lambda: len(picker.addresses.found) == len(at.servers))
            yield Running(picker, at)
        finally:
            await picker.stop()


def head(named: dict[str, str], *, end: bool = False) -> Any:
    """Return the message about a request's head."""
    return pb.ProcessingRequest(request_headers=pb.HttpHeaders(headers=_headers(named), end_of_stream=end))


def _headers(named: dict[str, str]) -> Any:
    return pb.HeaderMap(headers=[pb.HeaderValue(key=k, raw_value=v.encode()) for k, v in named.items()])


def _metadata(namespace: str, key: str, value: Any) -> Any:
    if value is None:
        return pb.Metadata()
    found = Struct()
    found.update({key: value})
    return pb.Metadata(filter_metadata=[{"key": namespace, "value": found}])


def _named(mutation: Any) -> dict[str, str]:
    return {h.header.key: h.header.raw_value.decode() for h in mutation.set_headers}


def _refused(reply: Any) -> Refused:
    found = reply.immediate_response
    return Refused(found.status.code, json.loads(found.body).get("error", {}), _named(found.headers))


def _outcome(replies: list[Any]) -> Sent | Refused:
    """Return what the replies come to; raises AssertionError where they say two things, or nothing."""
    for reply in replies:
        if reply.HasField("immediate_response"):
            assert reply is replies[-1], "nothing follows a refusal"
            return _refused(reply)
    (decided,) = [r for r in replies if "envoy.lb" in r.dynamic_metadata]
    phase = messages.phase(decided)
    mutation = getattr(decided, phase).response.header_mutation
    headers = _named(mutation)
    told = decided.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"]
    assert headers["x-gateway-destination-endpoint"] == told, "both ways of telling agree"
    changed = [r.request_body.response.body_mutation for r in replies if r.HasField("request_body")]
    streamed = [c.streamed_response for c in changed if c.HasField("streamed_response")]
    assert [s.end_of_stream for s in streamed] == [s is streamed[-1] for s in streamed], "the last piece says so"
    body = b"".join(s.body for s in streamed) if streamed else changed[-1].body
    return Sent(told.split(","), headers, list(mutation.remove_headers), body)
