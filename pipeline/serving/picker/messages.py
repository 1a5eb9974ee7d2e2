"""The Endpoint Picker Protocol's messages: what a data plane says, and what it is told.

Rules: pure; names and namespaces are those of the Gateway API inference extension's proposal 004, version 1.0; whatever
a header is set to replaces what was there, so that a client cannot choose its endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct

from pipeline.peers import asgi
from pipeline.serving.gateway import wire
from pipeline.serving.gateway.problems import Problem
from pipeline.serving.picker import protocol as pb

NAMESPACE = "envoy.lb"
DESTINATION = "x-gateway-destination-endpoint"
SERVED = "x-gateway-destination-endpoint-served"
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
SUBSET = "x-gateway-destination-endpoint-subset"
_PIECE = 62 << 10  # bytes of a body in one message: data planes bound it at 64 KiB
_PHASES = frozenset(f"{side}_{part}" for side in ("request", "response") for part in ("headers", "body", "trailers"))
_KEPT_BACK = ("authorization", "cookie")  # the client's credentials are not the servers' business


def phase(message: Any) -> str:
    """Return which part of a request or answer a message, or a reply, is about."""
    return next(str(field.name) for field, _ in message.ListFields() if field.name in _PHASES)


def headers(found: Any) -> dict[bytes, bytes]:
    """Return a message's headers by their names in lower case."""
    return wire.by_name([(h.key.encode(), h.raw_value or h.value.encode()) for h in found.headers])


def body_mode(message: Any) -> int | None:
    """Return how request bodies are sent, by a conversation's first message; None where it does not say."""
    return message.protocol_config.request_body_mode if message.HasField("protocol_config") else None


def is_streamed(mode: int | None) -> bool:
    """Return whether bodies come and go in pieces, each way at its own pace."""
    return mode == pb.FULL_DUPLEX_STREAMED


def answer_streamed(message: Any) -> bool:
    """Return whether answers come and go so, by a conversation's first message."""
    return is_streamed(message.protocol_config.response_body_mode)


def check_mode(mode: int | None) -> None:
    """Raise Problem where a request could go on before its whole body was seen."""
    if mode not in {None, pb.BUFFERED, pb.FULL_DUPLEX_STREAMED}:
        message = "the data plane must send whole bodies: request_body_mode BUFFERED or FULL_DUPLEX_STREAMED"
        raise Problem(503, "body_mode", message, "server_error")


def subset(message: Any) -> frozenset[str] | None:
    """Return the addresses a request is confined to; None where it is not."""
    found = _metadata(message, SUBSET_NAMESPACE).get(SUBSET)
    if found is None:
        return None
    given = found.split(",") if isinstance(found, str) else [v for v in found if isinstance(v, str)]
    return frozenset(address.strip() for address in given)


def served(message: Any) -> str | None:
    """Return the address that answered; None where the data plane does not say."""
    found = _metadata(message, NAMESPACE).get(SERVED)
    return found if isinstance(found, str) else None


def _metadata(message: Any, namespace: str) -> dict[str, Any]:
    return next((dict(e.value) for e in message.metadata_context.filter_metadata if e.key == namespace), {})


def go_on(part: str) -> Any:
    """Return the reply that changes nothing."""
    if part.endswith("trailers"):
        return pb.ProcessingResponse(**{part: pb.TrailersResponse()})
    kind = pb.BodyResponse if part.endswith("body") else pb.HeadersResponse
    return pb.ProcessingResponse(**{part: kind(response=pb.CommonResponse())})


def to(named: Mapping[str, str], body: bytes) -> Any:
    """Return the reply to a whole body: the headers that say where the request goes, and the body that goes there."""
    common = pb.CommonResponse(
        header_mutation=_mutation({**named, "content-length": str(len(body))}), body_mutation=pb.BodyMutation(body=body)
    )
    return pb.ProcessingResponse(request_body=pb.BodyResponse(response=common), dynamic_metadata=_destination(named))


def to_streamed(named: Mapping[str, str], body: bytes, *, last: bool) -> list[Any]:
    """Return the same in pieces, for a data plane that streams; `last` says that no trailers follow."""
    common = pb.CommonResponse(header_mutation=_mutation(named))
    head = pb.ProcessingResponse(
        request_headers=pb.HeadersResponse(response=common), dynamic_metadata=_destination(named)
    )
    starts = range(0, len(body), _PIECE)
    pieces = [piece("request_body", body[i : i + _PIECE], last=last and i + _PIECE >= len(body)) for i in starts]
    return [head, *pieces]


def piece(part: str, body: bytes, *, last: bool) -> Any:
    """Return the reply that passes a piece of a streamed body on."""
    mutation = pb.BodyMutation(streamed_response=pb.StreamedBodyResponse(body=body, end_of_stream=last))
    return pb.ProcessingResponse(**{part: pb.BodyResponse(response=pb.CommonResponse(body_mutation=mutation))})


def shown(found: asgi.Headers) -> Any:
    """Return the reply to an answer's head: the headers that its client sees besides."""
    mutation = pb.HeaderMutation(set_headers=_set((n.decode(), v.decode()) for n, v in found))
    return pb.ProcessingResponse(
        response_headers=pb.HeadersResponse(response=pb.CommonResponse(header_mutation=mutation))
    )


def refusal(problem: Problem) -> Any:
    """Return the reply that ends a request with an error."""
    extra = [(n.decode(), v.decode()) for n, v in problem.headers()]
    return at_once(problem.status, problem.body(), problem.code, extra)


def at_once(status: int, body: bytes, details: str, extra: Iterable[tuple[str, str]] = ()) -> Any:
    """Return the reply that answers a request in JSON, without any server."""
    mutation = pb.HeaderMutation(set_headers=_set([("content-type", "application/json"), *extra]))
    found = pb.ImmediateResponse(status=pb.HttpStatus(code=status), headers=mutation, body=body, details=details)
    return pb.ProcessingResponse(immediate_response=found)


def _mutation(named: Mapping[str, str]) -> pb.HeaderMutation:
    return pb.HeaderMutation(set_headers=_set(named.items()), remove_headers=_KEPT_BACK)


def _set(named: Iterable[tuple[str, str]]) -> list[Any]:
    return [
        pb.HeaderValueOption(
            header=pb.HeaderValue(key=name, raw_value=value.encode()),
            append_action=pb.OVERWRITE,
        )
        for name, value in named
    ]


def _destination(named: Mapping[str, str]) -> Struct:
    found = Struct()
    found.update({NAMESPACE: {DESTINATION: named[DESTINATION]}})
    return found
