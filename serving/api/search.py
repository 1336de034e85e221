"""POST /search and GET /search: BM25, the encoder and the fused order over the documents of a release."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from serving.api.direct_route import DirectRoute
from serving.api.json_io import request_schema, validate
from serving.api.request import RequestContext
from serving.api.schemas import ERROR_ANSWERS, check_parameters
from serving.api.search_answer import SearchAnswer, answered
from serving.api.search_request import LINK_NAMES, REPEATED, SearchRequest, Value, check_query_length
from serving.errors import InvalidRequestError
from serving.rollout import comparison

DEFAULT_LENGTH = 10
"""Length of each list where the request names none."""

router = APIRouter(responses=ERROR_ANSWERS, route_class=DirectRoute)


@router.post(
    "/search",
    tags=["search"],
    responses={200: {"model": SearchAnswer}},
    openapi_extra=request_schema(SearchRequest),
)
async def search(request: Request) -> Response:
    """Searches the documents of the live release: BM25, the encoder, and the final order of all models."""
    context = RequestContext(request)
    return await _search(context, await context.read(SearchRequest))


@router.get("/search", tags=["search"], responses={200: {"model": SearchAnswer}})
async def search_by_link(
    request: Request,
    q: Annotated[str | None, Query(description="The search query.")] = None,
    query: Annotated[str | None, Query(description="The same as `q`.")] = None,
    top_n: Annotated[int | None, Query(ge=1, description="Length of each list; 10 when not given.")] = None,
    filter: Annotated[
        list[str] | None, Query(description="field:value; the same field again means or, another one and.")
    ] = None,
    lists: Annotated[list[str] | None, Query(description="The same as in the body; repeated for several.")] = None,
    fields: Annotated[list[str] | None, Query(description="The same as in the body; repeated for several.")] = None,
    facets: Annotated[list[str] | None, Query(description="The same as in the body; repeated for several.")] = None,
    explain: Annotated[bool | None, Query(description="The same as in the body.")] = None,
    matches: Annotated[bool | None, Query(description="The same as in the body.")] = None,
    min_relevance: Annotated[float | None, Query(description="The same as in the body.")] = None,
    release: Annotated[str | None, Query(description="The same as in the body.")] = None,
) -> Response:
    """The same search as a link."""
    check_parameters(request.query_params.multi_items(), LINK_NAMES, REPEATED)
    if q is None and query is None:
        raise InvalidRequestError("q: missing; send what is searched for, as /search?q=…")
    body = {
        "q": q,
        "query": query,
        "top_n": top_n,
        "filters": _filters(filter or []) or None,
        "lists": lists,
        "fields": fields,
        "facets": facets,
        "explain": explain,
        "matches": matches,
        "min_relevance": min_relevance,
        "release": release,
    }
    return await _search(RequestContext(request), validate(body, SearchRequest))


def _filters(parts: Sequence[str]) -> dict[str, list[str]]:
    """The values of each field, from parameters written as field:value."""
    filters: dict[str, list[str]] = {}
    for part in parts:
        field, colon, value = part.partition(":")
        if not colon:
            raise InvalidRequestError(f"filter is {part[:100]!r}; write it as field:value")
        filters.setdefault(field, []).append(value)
    return filters


async def _search(context: RequestContext, body: SearchRequest) -> Response:
    context.choose(body.release)
    settings, searcher, query, details = context.service.settings, context.searcher, body.query, body.details
    limit, retrieve, length = settings.max_results, settings.retrieve, body.top_n or DEFAULT_LENGTH
    filters: Mapping[str, Sequence[Value]] = body.filters or {}
    if not query.strip():
        raise InvalidRequestError("query is empty; send what is searched for")
    check_query_length(query)
    if length > limit:
        raise InvalidRequestError(f"top_n is {length}; at most {limit} are given (RELEVANCE_MAX_RESULTS)")

    def work() -> Any:
        if "reranked" in details.lists:
            context.compare(comparison.Search(query, length, retrieve, filters))
        result = searcher.search(
            query, top_n=length, retrieve=retrieve, filters=filters, details=details, options=context.options
        )
        context.counts(result.candidates)
        context.spent(result.cache_hits, result.cache_misses)
        context.service.metrics.searched(result.milliseconds, result.degraded)
        if result.model_failed:
            context.model_failed()
        return answered(result, details)

    return await context.answer(work)
