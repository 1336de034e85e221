"""POST /search and GET /search: BM25, the encoder and the fused order over the documents of a release."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, BeforeValidator, Field
from starlette.responses import Response

from serving.api import (
    json_io,
)
from serving.api.json_io import request_schema
from serving.api.request import RequestContext
from serving.api.schemas import RequestBody
from serving.errors import InvalidRequestError
from serving.rollout import comparison

MAX_FILTER_VALUES = 1000

router = APIRouter()


Value = bool | int | float | str


def _wanted(value: Any) -> Any:
    """The values of one filter as a list; one message in place of one for each type of the union."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, Value) for item in values):
        raise ValueError("a filter is a text, a number, true or false, or a list of these")
    return values


Wanted = Annotated[list[Value], BeforeValidator(_wanted)]


class SearchRequest(RequestBody):
    """A question to the documents of the live release."""

    query: str = Field(description="What is searched for.", examples=["turn a list of dicts into a table"])
    top_n: int | None = Field(None, ge=1, description="Length of each list; 10 when not given.")
    filters: dict[str, Wanted] | None = Field(
        None,
        description="Only documents whose field has this value, or one of these; of several fields, all must fit.",
        examples=[{"language": "en", "year": [2025, 2026]}],
    )


class SearchHit(BaseModel):
    """One document in one of the three lists of a search."""

    doc_id: str
    title: str
    snippet: str
    score: float
    rank: int
    lexical_rank: int | None
    semantic_rank: int | None
    rank_change: int | None = Field(description="Places it rose against BM25 and encoder together; final list only.")
    relevance: float | None = Field(description="What the ranker alone says, in [0, 1]; final list only.")


class SearchAnswer(BaseModel):
    """The same question answered in three ways."""

    query: str
    release: str
    lexical: list[SearchHit]
    semantic: list[SearchHit]
    reranked: list[SearchHit]
    milliseconds: dict[str, float]
    candidates: int
    cache_hits: int
    cache_misses: int


@router.post(
    "/search",
    tags=["search"],
    responses={200: {"model": SearchAnswer}},
    openapi_extra=request_schema(SearchRequest),
)
async def search(request: Request) -> Response:
    """Searches the documents of the live release: BM25, the encoder, and the final order of all models."""
    asked = json_io.parse(await request.body(), SearchRequest)
    return await _search(RequestContext(request), asked.query, asked.top_n, asked.filters or {})


@router.get("/search", tags=["search"], responses={200: {"model": SearchAnswer}})
async def search_by_link(
    request: Request,
    q: Annotated[str, Query(description="What is searched for.")],
    top_n: Annotated[int | None, Query(ge=1, description="Length of each list; 10 when not given.")] = None,
    filter: Annotated[
        list[str] | None, Query(description="field:value; the same field again means or, another one and.")
    ] = None,
) -> Response:
    """The same search as a link."""
    filters: dict[str, list[Value]] = {}
    for part in filter or []:
        field, colon, value = part.partition(":")
        if not colon:
            raise InvalidRequestError(f"filter is {part[:100]!r}; write it as field:value")
        filters.setdefault(field, []).append(value)
    return await _search(RequestContext(request), q, top_n, filters)


async def _search(
    call: RequestContext, query: str, top_n: int | None, filters: Mapping[str, Sequence[Value]]
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
