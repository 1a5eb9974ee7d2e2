"""The ASGI application: completions on a path of their own, everything else by FastAPI, which documents both.

Rules: FastAPI's routing and validation cost more than a whole proxied request, so completions go around it; every
error has OpenAI's shape.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from pipeline.serving import asgi
from pipeline.serving.decision import Hint
from pipeline.serving.gateway.ask import ChatBody, CompletionBody, GenerateBody, Kind
from pipeline.serving.gateway.gateway import Gateway
from pipeline.serving.gateway.metrics import CONTENT_TYPE
from pipeline.serving.gateway.problems import Problem

HOT = {"/v1/chat/completions": Kind.CHAT, "/v1/completions": Kind.COMPLETIONS, "/generate": Kind.GENERATE}
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "a completion, or its events", "content": {"application/json": {}, "text/event-stream": {}}}
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": text, "content": {"application/json": {}}}
    for code, text in {
        400: "a field is not as it must be, or the prompt exceeds every context",
        401: "no known API key",
        404: "no such model",
        408: "the body did not come in time",
        413: "the body is too large",
        429: "the key's rate is used up, or the servers are busy: Retry-After says for how long",
        431: "the headers are too large",
        502: "every server that was tried failed",
        503: "no server may answer this",
        504: "the answer was not complete in time",
    }.items()
}


class App:
    """A gateway as ASGI sees it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._others = slow(gateway)

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and (kind := HOT.get(scope["path"])) is not None:
            await self._gateway.proxy.handle(kind, scope, receive, send)
            return
        await self._others(scope, receive, send)


def slow(gateway: Gateway) -> FastAPI:
    """Return everything but completions, and the documentation of all."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    app = FastAPI(
        title="edge-release gateway",
        description="Edge-first routing of OpenAI's API to verified releases.",
        version="1",
        lifespan=lifespan,
    )
    _documented(app)
    _operating(app, gateway)

    @app.get("/v1/models", summary="Names that `model` may have", responses={401: _ERRORS[401]})
    async def models(request: Request) -> dict[str, Any]:
        gateway.parts.callers.admit(dict(request.scope["headers"]))
        offered = sorted({o.name for o in gateway.fleet.offers.values() if o.current})
        return {"object": "list", "data": [_model(name) for name in (*Hint, *offered)]}

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Exception) -> Response:
        assert isinstance(error, Problem), "registered for problems"
        headers = {name.decode(): value.decode() for name, value in error.headers()}
        return Response(error.body(), error.status, headers, "application/json")

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "registered for those"
        found = Problem(error.status_code, "not_found" if error.status_code == 404 else "refused", str(error.detail))
        return Response(found.body(), found.status, error.headers, "application/json")

    return app


def _operating(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/healthz", summary="Whether the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether requests can be answered, and why not", responses={503: {}})
    async def readyz() -> Response:
        problems = gateway.problems()
        document = {"ready": not problems, "problems": problems, "release": gateway.held.version}
        return JSONResponse(document, 503 if problems else 200)

    @app.get(
        "/metrics",
        summary="Prometheus's text format",
        response_class=PlainTextResponse,
    )
    async def metrics() -> Response:
        return Response(gateway.metrics.exposition(), media_type=CONTENT_TYPE)


def _documented(app: FastAPI) -> None:
    """Add the hot routes for the documentation's sake; `App` answers them before FastAPI sees them."""

    @app.post("/v1/chat/completions", summary="OpenAI's chat completions", responses=_STREAMED | _ERRORS)
    async def chat(_: ChatBody) -> dict[str, Any]:
        raise AssertionError("answered before")

    @app.post("/v1/completions", summary="OpenAI's text completions", responses=_STREAMED | _ERRORS)
    async def completions(_: CompletionBody) -> dict[str, Any]:
        raise AssertionError("answered before")

    @app.post("/generate", summary="One prompt, one answer", responses=_ERRORS)
    async def generate(_: GenerateBody) -> dict[str, Any]:
        raise AssertionError("answered before")


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "edge-release"}
