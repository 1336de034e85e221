"""POST /search and GET /search: BM25, the encoder and the fused order over the documents of a release."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, BeforeValidator, Field
from starlette.responses import Response

from serving.api.json_io import request_schema
from serving.api.request import RequestContext
from serving.api.schemas import ClientShape, RequestBody
from serving.errors import BodyTooLargeError, InvalidRequestError
from serving.rollout import comparison

MAX_FILTER_VALUES = 1000

MAX_QUERY_CHARS = 100_000
"""Characters of a query; a longer one is refused, not cut. One of four megabytes took 32 times its size in memory."""

DEFAULT_LENGTH = 10
"""Length of each list where the request names none."""

router = APIRouter()

Value = bool | int | float | str


def _few_values(filters: Any) -> Any:
    """Checks the number of values of all filters before any of them is looked at."""
    if isinstance(filters, dict):
        count = sum(len(values) if isinstance(values, list) else 1 for values in filters.values())
        if max(count, len(filters)) > MAX_FILTER_VALUES:
            raise InvalidRequestError(f"filters hold more than {MAX_FILTER_VALUES} values; send fewer")
    return filters


def _as_values(value: Any) -> Any:
    """The values of one filter as a list; one message in place of one for each type of the union."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, Value) for item in values):
        raise ValueError("a filter is a text, a number, true or false, or a list of these")
    return values


Values = Annotated[list[Value], BeforeValidator(_as_values)]
Filters = Annotated[dict[str, Values], BeforeValidator(_few_values)]

OWN_SEARCH = ClientShape(client="search-relevance", honoured=frozenset({"query", "top_n", "filters"}))


class SearchRequest(RequestBody):
    """A query to the documents of the live release."""

    shapes: ClassVar[tuple[ClientShape, ...]] = (OWN_SEARCH,)

    query: str = Field(description="What is searched for.", examples=["turn a list of dicts into a table"])
    top_n: int | None = Field(None, ge=1, description="Length of each list; 10 when not given.")
    filters: Filters | None = Field(
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
    rank_change: int | None = Field(description="Ranks it rose against BM25 and encoder together; final list only.")
    relevance: float | None = Field(description="The ranker's own score, in [0, 1]; final list only.")


class SearchAnswer(BaseModel):
    """Three lists for one query: of BM25, of the encoder, and of all models together."""

    query: str
    release: str
    lexical: list[SearchHit]
    semantic: list[SearchHit]
    reranked: list[SearchHit]
    milliseconds: dict[str, float]
    candidates: int
    cache_hits: int
    cache_misses: int
    degraded: str | None = Field(
        None,
        description="Only where a model failed or was late. ranker: the final list has the order of BM25 and encoder; "
        "encoder: that of BM25.",
    )


@router.post(
    "/search",
    tags=["search"],
    responses={200: {"model": SearchAnswer}},
    openapi_extra=request_schema(SearchRequest),
)
async def search(request: Request) -> Response:
    """Searches the documents of the live release: BM25, the encoder, and the final order of all models."""
    context = RequestContext(request)
    body = await context.read(SearchRequest)
    return await _search(context, body.query, body.top_n, body.filters or {})


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
    return await _search(RequestContext(request), q, top_n, _few_values(filters))


async def _search(
    context: RequestContext, query: str, top_n: int | None, filters: Mapping[str, Sequence[Value]]
) -> Response:
    settings, searcher = context.service.settings, context.searcher
    limit, retrieve, length = settings.max_results, settings.retrieve, top_n or DEFAULT_LENGTH
    if not query.strip():
        raise InvalidRequestError("query is empty; send what is searched for")
    if len(query) > MAX_QUERY_CHARS:
        raise BodyTooLargeError(f"query has {len(query)} characters; a search takes at most {MAX_QUERY_CHARS}")
    if length > limit:
        raise InvalidRequestError(f"top_n is {length}; at most {limit} are given (RELEVANCE_MAX_RESULTS)")

    def work() -> Any:
        context.compare(comparison.Search(query, length, retrieve, filters))
        result = searcher.search(query, top_n=length, retrieve=retrieve, filters=filters, terms=context.options)
        context.counts(result.candidates)
        context.spent(result.cache_hits, result.cache_misses)
        context.service.metrics.searched(result.milliseconds, result.degraded)
        answer = asdict(result)
        del answer["model_failed"]
        if result.model_failed:
            context.model_failed()
        if result.degraded is None:
            del answer["degraded"]
        return answer

    return await context.answer(work)
