"""GET /v1/models and /info: the models that are served."""

from datetime import datetime
from importlib import metadata
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from serving.api.request import RequestContext
from serving.api.schemas import ERROR_ANSWERS
from serving.errors import NotFoundError
from serving.scoring.searcher import Searcher

VERSION = metadata.version("search-relevance")

THUMBS = "/thumbs"
"""The path that a service has only where its settings name a folder for thumbs."""

router = APIRouter(responses=ERROR_ANSWERS)


class ModelEntry(BaseModel):
    """A model of the live release."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    digest: str
    precision: str
    release: str


class SurfaceWorth(BaseModel):
    """The mean difference of a path's order to its first stage on judged queries, with the 95 % interval."""

    system: str
    first_stage: str
    measure: str
    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    queries: int
    verdict: Literal["better", "worse", "no difference shown"]


class ModelList(BaseModel):
    """The models of the live release."""

    object: Literal["list"]
    data: list[ModelEntry]
    surfaces: dict[str, SurfaceWorth] = {}
    """Path → its worth, from the release's report; `/rerank` alone may be worse than the caller's own first stage."""
    unanswered: dict[str, str] = {}
    """Path → the reason why this release cannot answer it; empty for a release with all parts."""


@router.get("/v1/models", tags=["about"], responses={200: {"model": ModelList}})
async def models(request: Request) -> Response:
    """The models of the live release, in OpenAI's shape, and the paths that it cannot answer."""
    context = RequestContext(request)
    searcher = context.searcher
    models = list(_models(searcher).values())
    answer = {"object": "list", "data": models, "surfaces": searcher.surfaces, "unanswered": _unanswered(context)}
    return context.small_answer(answer)


@router.get("/v1/models/{model_id:path}", tags=["about"], responses={200: {"model": ModelEntry}})
async def model(request: Request, model_id: str) -> Response:
    """One model, by `ranker`, `encoder` or its digest."""
    context = RequestContext(request)
    for name, entry in _models(context.searcher).items():
        if model_id in (name, entry["digest"]):
            return context.small_answer(entry)
    raise NotFoundError(f"no model called '{model_id[:100]}'; GET /v1/models lists them")


def _unanswered(context: RequestContext) -> dict[str, str]:
    """Path → the reason why the live release cannot answer it, of the paths that this service has."""
    has_thumbs = context.service.thumbs is not None
    return {path: reason for path, reason in context.searcher.unanswered.items() if has_thumbs or path != THUMBS}


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
        for name, engine in searcher.models.items()
    }


@router.get("/info", tags=["about"])
async def info(request: Request) -> Response:
    """The models and limits, in the shape of text-embeddings-inference with our own fields after it."""
    context = RequestContext(request)
    settings = context.service.settings
    main, engine = next(iter(context.searcher.models.items()))
    reranker = {"reranker": {"id2label": {"0": "relevance"}, "label2id": {"relevance": 0}}}
    longest = max(template.max_tokens for template in engine.bundle.templates.values())
    return context.small_answer(
        {
            "model_id": main,
            "model_sha": engine.digest,
            "model_dtype": engine.precision,
            "served_model_name": main,
            "model_type": reranker if main == "ranker" else {"embedding": {"pooling": "part of the model"}},
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
            **_own_fields(context),
        }
    )


def _own_fields(context: RequestContext) -> dict[str, Any]:
    """The fields of /info beside those of text-embeddings-inference."""
    searcher, unanswered = context.searcher, _unanswered(context)
    encoder = searcher.models.get("encoder")
    return {
        "release": searcher.release,
        "created": searcher.created,
        "models": list(_models(searcher).values()),
        "surfaces": searcher.surfaces,
        "dimensions": encoder.dimensions if encoder else None,
        "widths": list(encoder.bundle.widths) if encoder else [],
        "documents": 0 if "/search" in unanswered else len(searcher.documents),
        "unanswered": unanswered,
        "examples": searcher.examples,
        "thresholds": searcher.thresholds,
        "fields": searcher.fields,
        "max_results": context.service.settings.max_results,
        "releases": [
            {"release": held.searcher.release, "roles": held.roles, "created": held.searcher.created}
            for held in context.service.lifecycle.held
        ],
        "thumbs": context.service.thumbs is not None and THUMBS not in unanswered,
    }
