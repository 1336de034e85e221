"""What is served and how it fares: models, probes and counters, for machines that watch the service."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from importlib import metadata
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from serving import errors, schemas
from serving.calls import Call, Service
from serving.errors import NotFoundError, NotReadyError
from serving.searcher import Searcher
from serving.wire import Json

VERSION = metadata.version("search-relevance")

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Response]])

router = APIRouter()


@router.get("/v1/models", tags=["about"], responses={200: {"model": schemas.Models}})
async def models(request: Request) -> Response:
    """The two models of the live release, in OpenAI's shape."""
    call = Call(request)
    return call.answer({"object": "list", "data": list(_models(call.searcher).values())})


@router.get("/v1/models/{model_id:path}", tags=["about"], responses={200: {"model": schemas.Model}})
async def model(request: Request, model_id: str) -> Response:
    """One model, by `ranker`, `encoder` or its digest."""
    call = Call(request)
    for name, facts in _models(call.searcher).items():
        if model_id in (name, facts["digest"]):
            return call.answer(facts)
    raise NotFoundError(f"no model called '{model_id[:100]}'; GET /v1/models lists them")


def _models(searcher: Searcher) -> dict[str, dict[str, Any]]:
    created = int(datetime.fromisoformat(searcher.created).timestamp())
    return {
        name: {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "search-relevance",
            "digest": engine.digest,
            "precision": engine.precision,
            "release": searcher.release,
        }
        for name, engine in (("ranker", searcher.ranker), ("encoder", searcher.encoder))
    }


@router.get("/info", tags=["about"])
async def info(request: Request) -> Response:
    """What is served, in the shape of text-embeddings-inference with our own fields after it."""
    call = Call(request)
    searcher, settings = call.searcher, call.service.settings
    longest = searcher.ranker.bundle.templates["pair"].max_tokens
    return call.answer(
        {
            "model_id": "ranker",
            "model_sha": searcher.ranker.digest,
            "model_dtype": searcher.ranker.precision,
            "served_model_name": "ranker",
            "model_type": {"reranker": {"id2label": {"0": "relevance"}, "label2id": {"relevance": 0}}},
            "max_concurrent_requests": settings.concurrency,
            "max_input_length": longest,
            "max_batch_tokens": longest,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_documents,
            "auto_truncate": True,
            "tokenization_workers": settings.concurrency,
            "version": VERSION,
            "sha": None,
            "docker_label": None,
            "release": searcher.release,
            "created": searcher.created,
            "models": list(_models(searcher).values()),
            "dimensions": searcher.encoder.dimensions,
            "widths": list(searcher.encoder.bundle.widths),
            "documents": len(searcher.documents),
            "examples": searcher.examples,
        }
    )


def _probe(path: str) -> Callable[[Handler], Handler]:
    """GET, and HEAD as load balancers ask it; FastAPI's schema cannot hold one function under both."""

    def register(handler: Handler) -> Handler:
        router.head(path, include_in_schema=False)(handler)
        return router.get(path, tags=["health"])(handler)

    return register


@_probe("/livez")
async def livez() -> Response:
    """The process answers; nothing more is asked."""
    return Json({"live": True})


@_probe("/readyz")
async def readyz(request: Request) -> Response:
    """200 when both models answered within the last second; names a release that was refused or withdrawn."""
    service: Service = request.app.state.service
    facts = {name: service.lifecycle.facts()[name] for name in ("refused", "withdrawn")}
    try:
        searcher = await _ready(service)
    except NotReadyError as error:
        return Json({**errors.body(error), "ready": False, **facts}, status_code=error.status)
    return Json({"ready": True, "release": searcher.release, **facts})


@_probe("/health")
@_probe("/ping")
async def health(request: Request) -> Response:
    """As readyz, with the empty body of text-embeddings-inference."""
    service: Service = request.app.state.service
    await _ready(service)
    return Response()


async def _ready(service: Service) -> Searcher:
    if service.draining.is_set():
        raise NotReadyError("the service is about to end")
    return await service.readiness.check()


@router.get("/metrics", tags=["health"])
async def metrics(request: Request) -> Response:
    """Counters in Prometheus's text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
