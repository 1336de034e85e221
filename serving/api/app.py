"""The endpoints: one scoring core in the shapes that four kinds of client know.

POST /rerank /v1/rerank /v2/rerank    asked with `texts`: text-embeddings-inference; with `documents`: Cohere, Jina
POST /search  GET /search?q=          our own: three lists for a query
POST /v1/embeddings  POST /embed      OpenAI; text-embeddings-inference
GET  /v1/models /info                 what is served
GET  /livez /readyz /health /metrics  for those who run it
GET  / /docs /openapi.json            for people
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from serving.api import (
    admin,
    embeddings,
    health,
    info,
    pages,
    rerank,
    schemas,
    search,
)
from serving.api.json_io import refusal
from serving.api.middleware import ServiceMiddleware
from serving.api.request import Service
from serving.api.worker_pool import WorkerPool
from serving.errors import InvalidRequestError, MethodError, NotFoundError, RequestError, ServingError
from serving.observability.metrics import Metrics
from serving.observability.tracing import Tracing
from serving.rollout.lifecycle import Lifecycle
from serving.rollout.readiness import Readiness


def create(lifecycle: Lifecycle, *, metrics: Path | None = None, tracing: Tracing | None = None) -> FastAPI:
    """The app that answers with whatever release `lifecycle` holds, and stops the life cycle when it ends.

    Args:
        metrics: see `serving.observability.metrics.Metrics`.
        tracing: in place of what the settings say.
    """
    settings = lifecycle.settings
    service = Service(
        lifecycle,
        WorkerPool(settings.concurrency),
        Metrics(lifecycle, metrics),
        Readiness(lifecycle),
        tracing or Tracing.to(settings.otlp_endpoint),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        lifecycle.stop()
        service.work.stop()
        service.readiness.stop()
        lifecycle.close()

    app = FastAPI(
        title="search-relevance",
        summary="Reranks documents, embeds texts and searches, with the live release.",
        version=info.VERSION,
        openapi_url=None,  # Answered by `pages`, as it shows nobody what he cannot reach,
        docs_url=None,  # and FastAPI's own pages load scripts from other hosts.
        redoc_url=None,
        lifespan=lifespan,
        responses={400: {"model": schemas.ErrorAnswer, "description": "Any failure: 4xx or 5xx"}},
    )
    app.state.service = service
    for room in (rerank, search, embeddings, info, health, pages):
        app.include_router(room.router)
    if settings.admin_keys:
        app.include_router(admin.router)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _query_error)
    app.add_middleware(
        ServiceMiddleware,
        lifecycle=lifecycle,
        metrics=service.metrics,
        tracing=service.tracing,
        draining=service.draining,
    )
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ServingError):  # While FastAPI read a body.
        return refusal(error.__cause__, request.url.path)
    if error.status_code == 404:
        return refusal(NotFoundError(f"no such path: {request.url.path[:200]}; GET /docs lists them"), request.url.path)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        refused = refusal(MethodError(f"{request.method} is not for this path; use {allowed}"), request.url.path)
        refused.headers["allow"] = allowed
        return refused
    return refusal(RequestError(str(error.detail)), request.url.path)


async def _query_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [fault for fault in error.errors() if fault["type"] == "json_invalid"]
    if faults:
        return refusal(RequestError(f"the body is not valid JSON: {faults[0]['ctx']['error']}"), request.url.path)
    words = "; ".join(
        f"{'.'.join(map(str, fault['loc'][1:])) or 'the body'}: {fault['msg']}" for fault in error.errors()
    )
    return refusal(InvalidRequestError(words), request.url.path)
