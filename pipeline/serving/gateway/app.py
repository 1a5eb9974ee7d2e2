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
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from pipeline.peers import asgi
from pipeline.serving.gateway import answers
from pipeline.serving.gateway.ask import PATHS, ChatBody, CompletionBody, GenerateBody
from pipeline.serving.gateway.gateway import Gateway
from pipeline.serving.gateway.overview import Overview, overview
from pipeline.serving.gateway.page import page
from pipeline.serving.gateway.problems import Problem
from pipeline.serving.gateway.watcher import Watcher

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


OPERATORS = frozenset({"/metrics", "/status"})


class App:
    """A gateway as ASGI sees it; `apart` says that operators have a port of their own, so that others see nothing."""

    def __init__(self, gateway: Gateway, *, apart: bool = False) -> None:
        self._gateway = gateway
        self._apart = apart
        self.others = slow(gateway)

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and (kind := PATHS.get(scope["path"])) is not None:
            await self._gateway.proxy.handle(kind, scope, receive, send)
            return
        if self._apart and scope["type"] == "http" and scope["path"] in OPERATORS:
            problem = Problem(404, "not_found", "operators ask for this at the admin port")
            await asgi.answer(send, problem.status, problem.body())
            return
        await self.others(scope, receive, send)


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
    operate(app, gateway)
    _told(app, gateway)

    @app.get("/v1/models", summary="Names that `model` may have", responses={401: _ERRORS[401]})
    async def models(request: Request) -> dict[str, Any]:
        gateway.parts.callers.admit(dict(request.scope["headers"]))
        return answers.models(gateway.fleet.offers)

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


def operate(app: FastAPI, watcher: Watcher) -> None:
    """Add what operators and balancers ask."""

    @app.get("/healthz", summary="Whether the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether requests can be answered, and why not", responses={503: {}})
    async def readyz() -> Response:
        problems = watcher.problems()
        document = {"ready": not problems, "problems": problems, "release": watcher.held.version}
        return JSONResponse(document, 503 if problems else 200)

    @app.get(
        "/metrics",
        summary="Prometheus's text format",
        response_class=PlainTextResponse,
    )
    async def metrics() -> Response:
        return Response(watcher.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


def _told(app: FastAPI, gateway: Gateway) -> None:
    text, headers = page()

    @app.get(
        "/status",
        summary="Release, pools, endpoints, last requests and objectives: a page for browsers, JSON for programs",
        response_class=Response,
        responses={200: {"model": Overview, "content": {"text/html": {}}}},
    )
    async def status(request: Request) -> Response:
        fresh = {"cache-control": "no-store", "vary": "accept"}
        if "text/html" in request.headers.get("accept", ""):
            return Response(text, headers={**fresh, **headers}, media_type="text/html")
        return Response(to_json(overview(gateway)), headers=fresh, media_type="application/json")


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
