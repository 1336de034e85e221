"""POST /candidates: the documents that one shard finds for a query, for the service that joins those of all shards."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from serving.api.direct_route import DirectRoute
from serving.api.json_io import request_schema
from serving.api.request import RequestContext
from serving.api.schemas import ERROR_ANSWERS, ClientShape, RequestBody
from serving.api.search_request import Filters, Value, check_query_length
from serving.errors import BodyTooLargeError
from serving.scoring import shard_candidates
from serving.scoring.shard_answer import CandidatesAnswer
from serving.scoring.shard_candidates import ShardQuery

MAX_DIMENSIONS = 16_384
"""Maximum length of a request's vector; that it has the encoder's own width is checked later."""

DEFAULT_DEPTH = 20
"""Number of documents that BM25 and the encoder each find where the request names none."""

MAX_FEATURES = 200
"""Maximum number of features that one request names; a field has two, BM25 and cosine."""

router = APIRouter(responses=ERROR_ANSWERS, route_class=DirectRoute)

OWN_CANDIDATES = ClientShape(
    client="search-relevance",
    honoured=frozenset({"query", "depth", "vector", "filters", "terms", "matches", "features", "collection"}),
)
"""The fields that the joining service sends; no other client is expected."""


class CandidatesRequest(RequestBody):
    """A query to one shard, with the vector that the joining service has computed for it."""

    known_only: ClassVar[bool] = True
    shapes: ClassVar[tuple[ClientShape, ...]] = (OWN_CANDIDATES,)

    query: str = Field(description="The search query.", examples=["sort a list"])
    depth: int | None = Field(
        None, ge=1, description="Documents that BM25 and the encoder each bring; 20 if not given."
    )
    vector: list[float] | None = Field(
        None,
        max_length=MAX_DIMENSIONS,
        description="The encoder's vector of the query; without it BM25 alone searches.",
    )
    filters: Filters | None = Field(None, description="Field → values that its documents may have, as in /search.")
    terms: bool | None = Field(None, description="Give each matched term's part in BM25.")
    matches: bool | None = Field(None, description="Give the terms of the query that the index knows.")
    features: list[str] | None = Field(
        None, max_length=MAX_FEATURES, description="Scores of single fields to give, such as bm25.title."
    )
    collection: str | None = Field(
        None,
        max_length=64,
        description="Fingerprint of the divided index that the joining service searches. A loaded release with a shard "
        "of it answers, even where a newer one is live already; the live release when not given.",
    )


@router.post(
    "/candidates",
    tags=["search"],
    responses={200: {"model": CandidatesAnswer}},
    openapi_extra=request_schema(CandidatesRequest),
)
async def candidates(request: Request) -> Response:
    """Finds the candidates of this shard for a query, before any ranking; `relevance serve --shards` asks it."""
    context = RequestContext(request)
    body = await context.read(CandidatesRequest)
    context.choose_collection(body.collection)
    settings, searcher = context.service.settings, context.searcher
    check_query_length(body.query)
    depth = body.depth or DEFAULT_DEPTH
    if depth > (limit := max(settings.max_results, settings.retrieve)):
        raise BodyTooLargeError(
            f"depth is {depth}; a shard gives at most {limit} (the larger of its RELEVANCE_MAX_RESULTS and "
            "RELEVANCE_RETRIEVE)"
        )
    filters: Mapping[str, Sequence[Value]] = body.filters or {}
    shard_query = ShardQuery(
        query=body.query,
        depth=depth,
        vector=body.vector,
        filters=filters,
        terms=bool(body.terms),
        matches=bool(body.matches),
        features=body.features or (),
    )

    def work() -> Any:
        answer = shard_candidates.answer(searcher, shard_query, context.options.deadline)
        context.counts(len(answer["documents"]))
        return answer

    return await context.answer(work)
