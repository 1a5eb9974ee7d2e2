"""The large server's door on loopback: OpenAI's API in front of continuous batching, and vLLM's paths beside it.

Rules: what cannot be answered is refused in OpenAI's shape before anything is generated; a prompt and what is to be
generated fit the context together; only requests with the key pass, but for `/health`.
"""

from __future__ import annotations

import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pipeline.errors import StageError
from pipeline.model.chat import Chat as Template
from pipeline.peers import asgi
from pipeline.serving.large import asked
from pipeline.serving.large.answering import Answer, Answering
from pipeline.serving.large.asked import RefusedError
from pipeline.serving.large.batching import BrokenError, Sampling
from pipeline.serving.large.metrics import Metrics
from pipeline.serving.large.shapes import CHAT, TEXT, Shape, usage
from pipeline.serving.node.proxy import MAX_BODY


@dataclass(frozen=True)
class Served:
    """What is served: the name clients know it by, tokens a request may have, of how many, and the model's sampling."""

    name: str
    context: int
    vocabulary: int
    sampling: Sampling


class App:
    """The handlers; `asgi` is the application."""

    def __init__(
        self, served: Served, template: Template, answering: Answering, metrics: Metrics, *,
        alive: Callable[[], bool], key: str,
    ) -> None:  # fmt: skip
        """Answer for a model; `key` is what clients must show as a bearer token, and `alive` whether the engine is."""
        self._served, self._template, self._answering = served, template, answering
        self._metrics, self._alive, self._key = metrics, alive, f"Bearer {key}".encode()
        self.asgi = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/metrics", self._figures),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._completion, methods=["POST"]),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/detokenize", self._detokenize, methods=["POST"]),
            ],
            exception_handlers={RefusedError: _refused, BrokenError: _broken, StageError: _no_template},
        )

    async def _health(self, _request: Request) -> Response:
        return Response(status_code=200 if self._alive() else 503)

    async def _figures(self, request: Request) -> Response:
        self._check_key(request)
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def _models(self, request: Request) -> Response:
        self._check_key(request)
        model = {"id": self._served.name, "object": "model", "created": 0, "owned_by": "edge-release"}
        return JSONResponse({"object": "list", "data": [model | {"max_model_len": self._served.context}]})

    async def _tokenize(self, request: Request) -> Response:
        found = asked.parse(asked.Tokenize, await self._body(request))
        if (found.prompt is None) == (found.messages is None):
            raise RefusedError("give either prompt or messages")
        if found.messages is not None:
            ids = self._template.conversation(found.messages)
        else:
            ids = self._template.tokens(found.prompt or "", special=found.add_special_tokens)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": self._served.context})

    async def _detokenize(self, request: Request) -> Response:
        found = asked.parse(asked.Detokenize, await self._body(request))
        return JSONResponse({"prompt": self._template.text(found.tokens)})

    async def _chat(self, request: Request) -> Response:
        found = asked.parse(asked.Chat, await self._body(request))
        ids = self._template.conversation(found.messages, unfinished=found.continue_final_message)
        return await self._answer(request, found, ids, CHAT)

    async def _completion(self, request: Request) -> Response:
        found = asked.parse(asked.Completion, await self._body(request))
        ids = found.prompt
        if isinstance(ids, str):
            ids = self._template.tokens(ids, special=found.add_special_tokens)
        elif max(ids) >= self._served.vocabulary or min(ids) < 0:
            raise RefusedError("a token id is none of the vocabulary's", "prompt")
        return await self._answer(request, found, ids, TEXT)

    async def _answer(self, request: Request, found: asked.Asked, ids: list[int], shape: Shape) -> Response:
        if found.model is not None and found.model != self._served.name:
            raise RefusedError(f"this server serves {self._served.name}", "model")
        answer = Answer(ids, self._limit(found, ids), self._sampling(found), found.stops)
        head = {"id": f"{shape.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": self._served.name}
        if found.stream:
            return StreamingResponse(self._events(found, answer, shape, head), media_type="text/event-stream")
        text = await self._whole(answer, request)
        choice = {"index": 0, "finish_reason": answer.finish, "logprobs": None, **shape.whole(text)}
        if found.return_token_ids:
            choice["token_ids"] = answer.tokens
        return JSONResponse({**head, "object": shape.kind, "choices": [choice], "usage": usage(answer)})

    async def _whole(self, answer: Answer, request: Request) -> str:
        text = ""
        async with aclosing(self._answering.pieces(answer)) as pieces:
            async for piece in pieces:
                text += piece
                if await request.is_disconnected():
                    break
        return text

    async def _events(
        self, found: asked.Asked, answer: Answer, shape: Shape, head: dict[str, Any]
    ) -> AsyncIterator[bytes]:
        chunk = {**head, "object": shape.chunk_kind}
        nothing: dict[str, Any] = {"usage": None} if found.include_usage else {}

        def event(part: dict[str, Any], finish: str | None) -> bytes:
            return _event({**chunk, "choices": [{"index": 0, "finish_reason": finish, **part}], **nothing})

        if shape.opening:
            yield event(shape.opening, None)
        told = 0
        try:
            async for piece in self._answering.pieces(answer):
                tokens = {"token_ids": answer.tokens[told:]} if found.return_token_ids else {}
                if piece or tokens.get("token_ids"):
                    told = len(answer.tokens)
                    yield event(shape.piece(piece) | tokens, None)
        except BrokenError as e:
            yield b"data: " + asgi.error(str(e), "server_error") + b"\n\n"
            return
        yield event(shape.closing, answer.finish)
        if found.include_usage:
            yield _event({**chunk, "choices": [], "usage": usage(answer)})
        yield b"data: [DONE]\n\n"

    def _limit(self, found: asked.Asked, ids: list[int]) -> int:
        room = self._served.context - len(ids)
        if room < 1 or (found.limit or 1) > room:
            raise RefusedError(
                f"{len(ids)} tokens of prompt and {found.limit or 1} to generate exceed the context of"
                f" {self._served.context}",
                "max_tokens" if room > 0 else "messages",
            )
        return found.limit or room

    def _sampling(self, found: asked.Asked) -> Sampling:
        own = self._served.sampling
        return Sampling(
            own.temperature if found.temperature is None else found.temperature,
            own.top_p if found.top_p is None else found.top_p,
            own.top_k if found.top_k is None else max(0, found.top_k),
        )

    async def _body(self, request: Request) -> bytes:
        self._check_key(request)
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                raise RefusedError(f"a request may have {MAX_BODY >> 20} MiB", status=413)
        return bytes(body)

    def _check_key(self, request: Request) -> None:
        if not hmac.compare_digest(request.headers.get("authorization", "").encode(), self._key):
            raise RefusedError("the key is missing or wrong", status=401)


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _refused(_request: Request, e: Exception) -> Response:
    assert isinstance(e, RefusedError)
    body = asgi.error(e.message, "invalid_request_error", code="invalid_value", param=e.param)
    return Response(body, e.status, media_type="application/json")


async def _broken(_request: Request, e: Exception) -> Response:
    return Response(asgi.error(str(e), "server_error"), 500, media_type="application/json")


async def _no_template(_request: Request, e: Exception) -> Response:
    assert isinstance(e, StageError)
    return Response(
        asgi.error(e.message, "invalid_request_error", param="messages"), 400, media_type="application/json"
    )
