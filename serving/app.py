"""The endpoints: one scoring core in the shapes that four kinds of client know.

POST /rerank /v1/rerank /v2/rerank    asked with `texts`: text-embeddings-inference; with `documents`: Cohere, Jina
POST /search  GET /search?q=          our own: three lists for a query
POST /v1/embeddings  POST /embed      OpenAI; text-embeddings-inference
GET  /v1/models /info                 what is served
GET  /livez /readyz /health /metrics  for those who run it
GET  / /docs /openapi.json            for people
"""

import base64
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from serving import about, admin, cascade, comparison, inputs, pages, schemas, wire
from serving.cache import Fetched
from serving.calls import Call, Service
from serving.edge import Edge, refusal
from serving.errors import InvalidRequestError, MethodError, NotFoundError, RequestError, ServingError
from serving.lifecycle import Lifecycle
from serving.metrics import Metrics
from serving.readiness import Readiness
from serving.reranker import Role, Vector, relevance
from serving.scheduler import Item
from serving.tracing import Tracing
from serving.work import Work

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Response]])

QUERY_TYPES = {"query", "search_query", "retrieval.query"}
"""How clients of Cohere, Voyage and Jina say that a text is a query."""

MAX_FILTER_VALUES = 1000


def create(lifecycle: Lifecycle, *, metrics: Path | None = None, tracing: Tracing | None = None) -> FastAPI:
    """The app that answers with whatever release `lifecycle` holds, and stops the life cycle when it ends.

    Args:
        metrics: see `serving.metrics.Metrics`.
        tracing: in place of what the settings say.
    """
    settings = lifecycle.settings
    service = Service(
        lifecycle,
        Work(settings.concurrency),
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
        version=about.VERSION,
        openapi_url=None,  # Answered by `pages`, as it shows nobody what he cannot reach,
        docs_url=None,  # and FastAPI's own pages load scripts from other hosts.
        redoc_url=None,
        lifespan=lifespan,
        responses={400: {"model": schemas.ErrorAnswer, "description": "Any failure: 4xx or 5xx"}},
    )
    app.state.service = service
    app.include_router(router)
    app.include_router(about.router)
    app.include_router(pages.router)
    if settings.admin_keys:
        app.include_router(admin.router)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _query_error)
    app.add_middleware(
        Edge, lifecycle=lifecycle, metrics=service.metrics, tracing=service.tracing, draining=service.draining
    )
    return app


router = APIRouter()


def _takes(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI part of a body that `wire.parse` reads in FastAPI's place, as it must bear lone surrogates."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def _rerank_route(path: str) -> Callable[[Handler], Handler]:
    answer = list[schemas.TextScore] | schemas.RerankAnswer
    return router.post(
        path, tags=["rerank"], responses={200: {"model": answer}}, openapi_extra=_takes(schemas.RerankRequest)
    )


@_rerank_route("/v2/rerank")
@_rerank_route("/v1/rerank")
@_rerank_route("/rerank")
async def rerank(request: Request) -> Response:
    """Scores documents against a query, best first.

    With `texts` the answer is a bare list, as text-embeddings-inference gives it; with `documents` it is that of
    Cohere and Jina. Both work on all three paths.
    """
    asked = wire.parse(await request.body(), schemas.RerankRequest)
    if asked.texts is not None:
        texts: Sequence[str] = asked.texts
    elif asked.documents is not None:
        texts = [schemas.document_text(document, asked.rank_fields) for document in asked.documents]
    else:
        raise InvalidRequestError("texts or documents is missing; send a list of texts")
    if not asked.query.strip():
        raise InvalidRequestError("query is empty; send what is searched for")
    call = Call(request)
    call.takes(len(texts), "documents")
    searcher = call.searcher
    if asked.max_tokens_per_doc is not None:
        inputs.check_limit(searcher.ranker, asked.max_tokens_per_doc, "max_tokens_per_doc")

    if asked.cascade:
        return await _cascade(request, call, asked, texts)

    def score() -> tuple[Fetched[float], int]:
        if asked.truncate is False:
            inputs.check_pairs(searcher.ranker, asked.query, texts)
        found = searcher.reranker.scores(asked.query, texts, call.terms)
        if asked.texts is not None:
            return found, 0
        return found, searcher.ranker.pair_tokens(asked.query, texts, remember=call.terms.remember)

    scored, read = await call.run(score)
    call.spent(scored.hits, scored.misses, by="ranker")
    scores = scored.values
    question = comparison.Rerank(asked.query, texts)
    call.said(question, lambda: question.outcome(scores))
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    if asked.texts is not None:
        return call.answer([_text_score(place, scores[place], asked) for place in order])
    results = [_ranked(place, scores[place], asked) for place in order[: asked.top_n or None]]
    return call.answer(_cohere(request, results, read))


async def _cascade(request: Request, call: Call, asked: schemas.RerankRequest, texts: Sequence[str]) -> Response:
    """The answer that the request's time allows: scored documents first, each result marked."""
    searcher = call.searcher
    first = schemas.first_stage(asked.documents) if asked.documents is not None else None

    def score() -> tuple[cascade.Cascade, int]:
        if asked.truncate is False:
            inputs.check_pairs(searcher.ranker, asked.query, texts)
        found = cascade.rerank(searcher.reranker, searcher.embedder, asked.query, texts, first, call.terms)
        if asked.texts is not None:
            return found, 0
        reached = [texts[place] for place in found.order[: found.reached]]
        return found, searcher.ranker.pair_tokens(asked.query, reached, remember=call.terms.remember)

    found, read = await call.run(score, in_time=True)
    call.spent(found.hits, found.misses, by="ranker", of=len(texts))
    call.reached(found.reached, len(texts))
    # What was not reached has the lowest score, so that no client's own sorting brings it before what was.
    nothing = 0.0 if asked.raw_scores else -math.inf
    lowest = min((score for score in found.scores if score is not None), default=nothing)

    def marked(place: int) -> dict[str, Any]:
        score = found.scores[place]
        made = _text_score if asked.texts is not None else _ranked
        result = made(place, score if score is not None else lowest, asked)
        return {**result, "reranked": score is not None}

    if asked.texts is not None:
        return call.answer([marked(place) for place in found.order])
    results = [marked(place) for place in found.order[: asked.top_n or None]]
    return call.answer(_cohere(request, results, read))


def _cohere(request: Request, results: list[dict[str, Any]], read: int) -> dict[str, Any]:
    meta = {"api_version": {"version": "2" if request.url.path.startswith("/v2") else "1"}}
    usage = {"prompt_tokens": read, "total_tokens": read}
    return {"id": uuid.uuid4().hex, "model": "ranker", "results": results, "meta": meta, "usage": usage}


def _text_score(place: int, score: float, asked: schemas.RerankRequest) -> dict[str, Any]:
    found: dict[str, Any] = {"index": place, "score": score if asked.raw_scores else relevance(score)}
    if asked.return_text and asked.texts is not None:
        found["text"] = asked.texts[place]
    return found


def _ranked(place: int, score: float, asked: schemas.RerankRequest) -> dict[str, Any]:
    found: dict[str, Any] = {"index": place, "relevance_score": relevance(score)}
    if asked.return_documents and asked.documents is not None:
        document = asked.documents[place]
        found["document"] = {"text": document} if isinstance(document, str) else document
    return found


@router.post(
    "/search",
    tags=["search"],
    responses={200: {"model": schemas.SearchAnswer}},
    openapi_extra=_takes(schemas.SearchRequest),
)
async def search(request: Request) -> Response:
    """Searches the documents of the live release: BM25, the encoder, and the final order of all models."""
    asked = wire.parse(await request.body(), schemas.SearchRequest)
    return await _search(Call(request), asked.query, asked.top_n, asked.filters or {})


@router.get("/search", tags=["search"], responses={200: {"model": schemas.SearchAnswer}})
async def search_by_link(
    request: Request,
    q: Annotated[str, Query(description="What is searched for.")],
    top_n: Annotated[int | None, Query(ge=1, description="Length of each list; 10 when not given.")] = None,
    filter: Annotated[
        list[str] | None, Query(description="field:value; the same field again means or, another one and.")
    ] = None,
) -> Response:
    """The same search as a link."""
    filters: dict[str, list[schemas.Value]] = {}
    for part in filter or []:
        field, colon, value = part.partition(":")
        if not colon:
            raise InvalidRequestError(f"filter is {part[:100]!r}; write it as field:value")
        filters.setdefault(field, []).append(value)
    return await _search(Call(request), q, top_n, filters)


async def _search(
    call: Call, query: str, top_n: int | None, filters: Mapping[str, Sequence[schemas.Value]]
) -> Response:
    limit = call.service.settings.max_results
    if not query.strip():
        raise InvalidRequestError("query is empty; send what is searched for")
    if top_n is not None and top_n > limit:
        raise InvalidRequestError(f"top_n is {top_n}; at most {limit} are given (RELEVANCE_MAX_RESULTS)")
    searcher, retrieve = call.searcher, call.service.settings.retrieve
    if sum(map(len, filters.values())) > MAX_FILTER_VALUES:
        raise InvalidRequestError(f"filters hold more than {MAX_FILTER_VALUES} values; send fewer")
    found = await call.run(
        lambda: searcher.search(query, top_n=top_n or 10, retrieve=retrieve, filters=filters, terms=call.terms)
    )
    call.counts(found.candidates)
    call.spent(found.cache_hits, found.cache_misses)
    call.service.metrics.searched(found.milliseconds)
    question = comparison.Search(query, top_n or 10, retrieve, filters)
    call.said(question, lambda: question.outcome(found))
    return call.answer(asdict(found))


@router.post(
    "/v1/embeddings",
    tags=["embed"],
    responses={200: {"model": schemas.EmbeddingsAnswer}},
    openapi_extra=_takes(schemas.EmbeddingsRequest),
)
async def embeddings(request: Request) -> Response:
    """Vectors of texts in OpenAI's shape."""
    asked = wire.parse(await request.body(), schemas.EmbeddingsRequest)
    role: Role = "query" if asked.input_type in QUERY_TYPES else "document"
    call = Call(request)
    if asked.model != call.searcher.encoder.digest and not all(isinstance(item, str) for item in asked.input):
        raise InvalidRequestError(
            "input holds token ids, which mean nothing without their vocabulary; send texts (in LangChain: "
            "check_embedding_ctx_length=False), or name the vocabulary with the encoder's digest in /v1/models as model"
        )
    vectors, read = await _vectors(call, asked.input, role, asked.dimensions, "input")
    coded: Callable[[Vector], Any] = _base64 if asked.encoding_format == "base64" else (lambda vector: vector)
    return call.answer(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": place, "embedding": coded(vector)}
                for place, vector in enumerate(vectors)
            ],
            "model": "encoder",
            "usage": {"prompt_tokens": read, "total_tokens": read},
        }
    )


@router.post(
    "/embed",
    tags=["embed"],
    responses={200: {"model": list[list[float]]}},
    openapi_extra=_takes(schemas.EmbedRequest),
)
async def embed(request: Request) -> Response:
    """Vectors of texts in the shape of text-embeddings-inference."""
    asked = wire.parse(await request.body(), schemas.EmbedRequest)
    if asked.normalize is False:
        raise InvalidRequestError("normalize is false; the encoder's vectors have unit length, leave it out")
    role: Role = "query" if asked.prompt_name in QUERY_TYPES else "document"
    call = Call(request)
    cut = asked.truncate is not False
    vectors, _ = await _vectors(call, asked.inputs, role, asked.dimensions, "inputs", cut=cut)
    return call.answer(vectors)


async def _vectors(
    call: Call, given: Sequence[inputs.Input], role: Role, dimensions: int | None, field: str, *, cut: bool = True
) -> tuple[list[Vector], int]:
    """The vectors of what was given in `field`, and the tokens that it has as the encoder reads it."""
    call.takes(len(given), f"texts in {field}")
    encoder, embedder = call.searcher.encoder, call.searcher.embedder
    width = dimensions or encoder.dimensions
    if width not in encoder.bundle.widths:
        known = " or ".join(map(str, encoder.bundle.widths))
        raise InvalidRequestError(f"dimensions is {width}; this encoder gives {known}")

    def compute() -> tuple[Fetched[Vector], int]:
        texts = inputs.texts(encoder, given, role, field)
        if not cut:
            inputs.check_texts(encoder, texts, role, field)
        found = embedder.vectors(texts, role, call.terms)
        return found, tokens(encoder.texts(texts, role, remember=call.terms.remember))

    found, read = await call.run(compute)
    call.spent(found.hits, found.misses, by="encoder")
    return [_cut(vector, width) for vector in found.values], read


def _cut(vector: Vector, width: int) -> Vector:
    """The first dimensions, of unit length again."""
    if width == len(vector):
        return vector
    first = vector[:width]
    return first / np.float32(np.linalg.norm(first) or 1.0)


def tokens(items: Sequence[Item]) -> int:
    """How many the model reads, special ones included; after scoring, as the ids are then remembered."""
    return sum(len(item.ids) for item in items)


def _base64(vector: Vector) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


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
