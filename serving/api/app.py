"""The app: all endpoints around one scoring core, in the shapes that four kinds of client know.

POST /rerank /v1/rerank /v2/rerank    with `texts`: text-embeddings-inference; with `documents`: Cohere, Jina, Voyage
POST /search  GET /search?q=          our own: three lists for a query
POST /candidates                      our own: what a shard has for a query, for the service that asks all shards
GET  /document?id=                    our own: one document with its neighbours
POST /thumbs                          our own: a thumb on a result, where the settings name a folder for them
POST /v1/embeddings  POST /embed      OpenAI, Jina, Voyage; text-embeddings-inference
POST /v1/embed /v2/embed              Cohere
POST /                                huggingface_hub, which posts to the address itself
GET  /v1/models /info                 the models that are served
GET  /livez /readyz /health /metrics  for those who run it
GET  / /docs /openapi.json            for people

`serving.api.paths` has the full table.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from serving.api import (
    candidates,
    cohere_embed,
    document,
    embeddings,
    health,
    info,
    json_io,
    pages,
    rerank,
    root,
    search,
)
from serving.api.json_io import Json, refusal
from serving.api.middleware import ServiceMiddleware
from serving.api.paths import UNKNOWN, Access, find, methods, no_such_path
from serving.api.record import RequestRecord
from serving.api.request import Service
from serving.api.thumb_file import ThumbFile
from serving.api.worker_pool import WorkerPool
from serving.errors import InvalidRequestError, MethodError, NotFoundError, RequestError, ServingError
from serving.observability.metrics import Metrics
from serving.observability.tracing import Tracing
from serving.rollout.lifecycle import Lifecycle
from serving.rollout.readiness import Readiness


def create(lifecycle: Lifecycle, *, metrics: Path | None = None, tracing: Tracing | None = None) -> FastAPI:
    """The app that answers with whatever release `lifecycle` holds, and stops the life cycle when it ends.

    Args:
        metrics: the folder in which all worker processes keep their counters; None where there is one process.
        tracing: replaces what the settings say.
    """
    settings = lifecycle.settings
    service = Service(
        lifecycle,
        WorkerPool(settings.concurrency),
        Metrics(lifecycle, metrics),
        Readiness(lifecycle),
        tracing or Tracing.to(settings.otlp_endpoint),
        ThumbFile(Path(settings.thumbs)) if settings.thumbs else None,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        lifecycle.stop()
        service.stop()
        lifecycle.close()

    app = FastAPI(
        title="search-relevance",
        summary="Reranks documents, embeds texts and searches, with the live release.",
        version=info.VERSION,
        openapi_url=None,  # `pages` answers it, without the endpoints that a client cannot reach.
        docs_url=None,  # FastAPI's own pages load scripts from other hosts.
        redoc_url=None,
        redirect_slashes=False,  # They would name an absolute address, which is wrong behind a proxy.
        lifespan=lifespan,
    )
    app.state.service = service
    about = (root, info, health, pages)
    for module in (rerank, search, candidates, document, embeddings, cohere_embed, *about, *_chosen(service)):
        # `include_router` would build each route again, with its first request, and look for the route of each twice.
        app.router.routes.extend(module.router.routes)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _query_error)
    app.add_middleware(ServiceMiddleware, service=service)
    return app


def _chosen(service: Service) -> list[ModuleType]:
    """The modules of endpoints that exist only where the settings ask for them; no other service imports them."""
    modules = []
    if service.thumbs is not None:
        from serving.api import thumbs

        modules.append(thumbs)
    if service.settings.admin_keys:
        from serving.api import admin

        modules.append(admin)
    return modules


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ServingError):  # While FastAPI read a body.
        return _refusal(request, error.__cause__)
    if error.status_code == 404:
        redirect = _without_slash(request)
        if redirect is not None:
            return redirect
        return _refusal(request, NotFoundError(no_such_path(request.url.path)))
    if error.status_code == 405:
        allowed = ", ".join(methods(request.scope["path"]))  # The router names those of its first route alone.
        refused = _refusal(request, MethodError(f"{request.method} is not for this path; use {allowed}"))
        refused.headers["allow"] = allowed
        return refused
    return _refusal(request, RequestError(str(error.detail)))


async def _query_error(request: Request, error: Exception) -> Response:
    """The answer to a query string, or to an administrator's body, that FastAPI could not read."""
    assert isinstance(error, RequestValidationError)
    details = error.errors()
    invalid = [detail for detail in details if detail["type"] == "json_invalid"]
    if invalid:
        return _refusal(request, RequestError(f"the body is not valid JSON: {invalid[0]['ctx']['error']}"))
    messages = (
        f"{'.'.join(map(str, detail['loc'][1:]))[: json_io.SHOWN_CHARS] or 'the body'}: {detail['msg']}"
        for detail in details[: json_io.SHOWN_ERRORS]
    )
    return _refusal(request, InvalidRequestError("; ".join(messages)))


def _refusal(request: Request, error: ServingError) -> Json:
    record: RequestRecord = request.state.record
    return refusal(error, record.endpoint)


def _without_slash(request: Request) -> Response | None:
    """A redirect from `/path/` to `/path`, where that exists; relative, so it holds behind any prefix."""
    path = request.url.path.removesuffix("/")
    endpoint = find(path, request.method)
    if path == request.url.path or endpoint is UNKNOWN or endpoint.access is Access.ADMIN:
        return None
    query = f"?{request.url.query}" if request.url.query else ""
    return Response(status_code=307, headers={"location": f"../{path.rpartition('/')[2]}{query}"})
