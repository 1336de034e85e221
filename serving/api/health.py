"""Probes and metrics, for machines that watch the service."""

from collections.abc import Callable

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from serving import errors
from serving.api.json_io import Json
from serving.api.request import Handler, Service
from serving.api.schemas import ERROR_ANSWERS
from serving.errors import NotReadyError
from serving.scoring.searcher import Searcher

router = APIRouter(responses=ERROR_ANSWERS)


def _probe(path: str, answer: type[Response] = JSONResponse) -> Callable[[Handler], Handler]:
    """A route for GET, and for HEAD as load balancers send it; FastAPI's schema cannot hold one function under both."""

    def register(handler: Handler) -> Handler:
        router.head(path, include_in_schema=False)(handler)
        return router.get(path, tags=["health"], response_class=answer)(handler)

    return register


@_probe("/livez")
async def livez() -> Response:
    """200 as long as the process answers; says nothing about its models."""
    return Json({"live": True})


@_probe("/readyz")
async def readyz(request: Request) -> Response:
    """200 when both models answered within the last second; names a release that was refused or withdrawn."""
    service: Service = request.app.state.service
    trouble = {name: service.lifecycle.stats()[name] for name in ("refused", "withdrawn")}
    try:
        searcher = await _ready(service)
    except NotReadyError as error:
        return Json({**errors.body(error), "ready": False, **trouble}, status_code=error.status)
    return Json({"ready": True, "release": searcher.release, **trouble})


@_probe("/health", Response)
@_probe("/ping", Response)
async def health(request: Request) -> Response:
    """The same as readyz, with the empty body of text-embeddings-inference."""
    service: Service = request.app.state.service
    await _ready(service)
    return Response()


async def _ready(service: Service) -> Searcher:
    if service.draining.is_set():
        raise NotReadyError("the service is about to end")
    return await service.readiness.check()


@router.get("/metrics", tags=["health"], response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Counters in Prometheus's text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
