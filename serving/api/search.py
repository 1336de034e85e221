"""POST /search and GET /search: BM25, the encoder and the fused order over the documents of a release."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, BeforeValidator, Field, model_validator
from starlette.responses import Response

from serving.api.direct_route import DirectRoute
from serving.api.json_io import request_schema, validate
from serving.api.request import RequestContext
from serving.api.schemas import ERROR_ANSWERS, ClientShape, RequestBody, check_parameters
from serving.errors import BodyTooLargeError, InvalidRequestError
from serving.rollout import comparison
from serving.scoring.answers import LISTS, ListName, SearchDetails, SearchResult

MAX_FILTER_VALUES = 1000

MAX_QUERY_CHARS = 100_000
"""Characters of a query; a longer one is refused, not cut. One of four megabytes took 32 times its size in memory."""

MOST_EXACT = 2**53
"""Up to it every whole number is exact as a float. The parser makes a float of a whole number of more than 64 bits."""

DEFAULT_LENGTH = 10
"""Length of each list where the request names none."""

router = APIRouter(responses=ERROR_ANSWERS, route_class=DirectRoute)

Value = bool | int | float | str


def _few_values(filters: Any) -> Any:
    """Checks the number of values of all filters before any of them is looked at."""
    if isinstance(filters, dict):
        count = sum(len(values) if isinstance(values, list) else 1 for values in filters.values())
        if max(count, len(filters)) > MAX_FILTER_VALUES:
            raise InvalidRequestError(f"filters hold more than {MAX_FILTER_VALUES} values; send fewer")
    return filters


def _as_values(value: Any) -> Any:
    """The values of one filter as a list. A wrong value gives one message, not one for each type that it could be."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, Value) for item in values):
        raise ValueError("a filter is a text, a number, true or false, or a list of these")
    if any(isinstance(item, float) and abs(item) > MOST_EXACT for item in values):
        raise ValueError(
            "a number of more than 64 bits, or above 2^53 and with a fraction, is rounded when it is read; send a text"
        )
    return values


Values = Annotated[list[Value], BeforeValidator(_as_values)]
Filters = Annotated[dict[str, Values], BeforeValidator(_few_values)]


MAX_NAMES = 20
"""Fields or facets of one request."""


def _few_names(names: Any) -> Any:
    """Checks a list of names: few, and none twice."""
    if isinstance(names, list):
        if len(names) > MAX_NAMES:
            raise InvalidRequestError(f"{len(names)} names; at most {MAX_NAMES} are taken")
        texts = [name for name in names if isinstance(name, str)]
        if len(set(texts)) < len(texts):
            raise ValueError("a name stands there twice")
    return names


Names = Annotated[list[str], Field(fail_fast=True), BeforeValidator(_few_names)]
Lists = Annotated[list[ListName], Field(min_length=1, fail_fast=True), BeforeValidator(_few_names)]

Release = Annotated[
    str,
    Field(
        max_length=64,
        description="A loaded release by its first digits, in place of the live one; `releases` of GET /info has them.",
    ),
]

OWN_SEARCH = ClientShape(
    client="search-relevance",
    honoured=frozenset(
        {
            "query",
            "q",
            "top_n",
            "filters",
            "lists",
            "fields",
            "facets",
            "explain",
            "matches",
            "min_relevance",
            "release",
        }
    ),
)


class SearchRequest(RequestBody):
    """A query to the documents of the live release."""

    known_only: ClassVar[bool] = True
    shapes: ClassVar[tuple[ClientShape, ...]] = (OWN_SEARCH,)

    query: str = Field(description="The search query; `q` is a second name of it.", examples=["remove duplicate rows"])
    top_n: int | None = Field(None, ge=1, description="Length of each list; 10 when not given.")
    filters: Filters | None = Field(
        None,
        description="Only documents whose field has this value, or one of these; of several fields, all must fit.",
        examples=[{"language": "en", "year": [2025, 2026]}],
    )
    lists: Lists | None = Field(
        None, description="Lists to answer, of `lexical`, `semantic` and `reranked`; all when not given."
    )
    fields: Names | None = Field(
        None, description="Stored columns to put into each result, such as `text` or a field; null where it has none."
    )
    facets: Names | None = Field(
        None, description="Fields whose values are counted over the candidates; the 20 most frequent of each."
    )
    explain: bool | None = Field(
        None, description="Say for each result of `reranked` which terms matched, and the share of each feature."
    )
    matches: bool | None = Field(
        None, description="Say for each result where terms of the query stand in its title and snippet."
    )
    min_relevance: float | None = Field(
        None, ge=0, le=1, description="Leave out results of `reranked` that the ranker gives less."
    )
    q: str | None = Field(None, description="The same as `query`; of both, send one.")
    release: Release | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_either_name(cls, body: Any) -> Any:
        if not isinstance(body, Mapping) or body.get("q") is None:
            return body
        query = body.get("query")
        if query is not None and query != body["q"]:
            raise InvalidRequestError("q and query are two names of one value and differ; send one of them")
        return {**body, "query": body["q"]}

    @property
    def details(self) -> SearchDetails:
        """The parts of the answer that are given on request."""
        return SearchDetails(
            lists=self.lists or LISTS,
            fields=self.fields or (),
            facets=self.facets or (),
            explain=bool(self.explain),
            matches=bool(self.matches),
            min_relevance=self.min_relevance or 0.0,
        )


class FeaturePart(BaseModel):
    """The part of one feature in the score of a result."""

    value: float
    weight: float
    share: float = Field(description="value · weight; the shares of a result sum to its score.")


class HitExplanation(BaseModel):
    """The reasons for a result's place in the final list."""

    terms: dict[str, float] = Field(description="Matched term → its part in BM25, the largest first.")
    features: dict[str, FeaturePart] = Field(description="Empty where a model was missing.")


class PassageHit(BaseModel):
    """The passage of a long document that fits the query best, by the ranker, or by the encoder where it read none."""

    text: str
    start: int = Field(description="Its first character, as an index in the document's text.")
    end: int
    number: int = Field(description="Number of the passage, from 1.")
    of: int = Field(description="Number of passages that the model read.")


class MatchedTerms(BaseModel):
    """Where terms of the query stand, found by the analysis of the index: [start, end] in characters, ascending."""

    title: list[tuple[int, int]]
    snippet: list[tuple[int, int]]


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
    fields: dict[str, Any] | None = Field(None, description="The columns of `fields`, where they were asked for.")
    explain: HitExplanation | None = Field(None, description="Only with `explain`, and in the final list.")
    matches: MatchedTerms | None = Field(None, description="Only with `matches`.")
    passage: PassageHit | None = Field(
        None,
        description="The passage that the snippet is cut from, where a model read the document in passages.",
    )


class AbsentShard(BaseModel):
    """A shard whose documents are not in the answer."""

    shard: str
    reason: str


class AskedShards(BaseModel):
    """The shards that the answer rests on."""

    answered: int
    of: int
    missing: list[AbsentShard]


class SearchAnswer(BaseModel):
    """Three lists for one query: of BM25, of the encoder, and of all models together."""

    query: str
    release: str
    lexical: list[SearchHit] | None = Field(None, description="The lists that were asked for.")
    semantic: list[SearchHit] | None = None
    reranked: list[SearchHit] | None = Field(
        None,
        description="The final order: by the release's fusion of BM25, encoder and ranker. Where the release has no "
        "ranker, it is the order of BM25 and encoder joined (reciprocal ranks), and `relevance` is null.",
    )
    milliseconds: dict[str, float]
    candidates: int
    cache_hits: int
    cache_misses: int
    fits: bool | None = Field(
        None,
        description="false: no document has a word of the query, and none lies nearer to it than to random letters. "
        "null: not known; the encoder did not answer, or the documents are in shards and none has a word.",
    )
    facets: dict[str, dict[str, int]] | None = Field(None, description="Field → value → number of candidates with it.")
    degraded: str | None = Field(
        None,
        description="Only where a model failed or was late. ranker: the final list has the order of BM25 and encoder; "
        "encoder: that of BM25.",
    )
    partial: bool | None = Field(
        None, description="Only where documents are in shards. true: those of the shards in `missing` are not searched."
    )
    shards: AskedShards | None = Field(None, description="Only where documents are in shards.")


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
    filters: dict[str, list[Value]] = {}
    for part in filter or []:
        field, colon, value = part.partition(":")
        if not colon:
            raise InvalidRequestError(f"filter is {part[:100]!r}; write it as field:value")
        filters.setdefault(field, []).append(value)
    body: dict[str, Any] = {
        "q": q,
        "query": query,
        "top_n": top_n,
        "filters": filters or None,
        "lists": lists,
        "fields": fields,
    }
    body |= {
        "facets": facets,
        "explain": explain,
        "matches": matches,
        "min_relevance": min_relevance,
        "release": release,
    }
    return await _search(RequestContext(request), validate(body, SearchRequest))


LINK_NAMES = tuple("filter" if name == "filters" else name for name in SearchRequest.model_fields)
"""The parameters of a search as a link: the fields of a body, whose filters are given one by one."""
REPEATED = ("filter", "lists", "fields", "facets")
"""Parameters that may stand several times in a link."""


def check_query_length(query: str) -> None:
    """Raises BodyTooLargeError for a query of more than MAX_QUERY_CHARS."""
    if len(query) > MAX_QUERY_CHARS:
        raise BodyTooLargeError(f"query has {len(query)} characters; a search takes at most {MAX_QUERY_CHARS}")


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
        return _answered(result, details)

    return await context.answer(work)


def _answered(result: SearchResult, details: SearchDetails) -> dict[str, Any]:
    """A result as JSON, without what was not asked for."""
    answer = asdict(result)
    del answer["model_failed"]
    if result.shards is None:
        del answer["shards"]
    else:
        answer["partial"] = bool(result.shards.missing)
    if result.degraded is None:
        del answer["degraded"]
    if not details.facets:
        del answer["facets"]
    for name in LISTS:
        if name not in details.lists:
            del answer[name]
            continue
        for hit in answer[name]:
            if not details.fields:
                del hit["fields"]
            if not (details.explain and name == "reranked"):
                del hit["explain"]
            if not details.matches:
                del hit["matches"]
            if hit["passage"] is None:
                del hit["passage"]
    return answer
