"""The body of a search, by POST or as the parameters of a link."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from serving.api.schemas import ClientShape, RequestBody
from serving.errors import BodyTooLargeError, InvalidRequestError
from serving.scoring.answers import LISTS, ListName, SearchDetails

MAX_FILTER_VALUES = 1000
"""Values in all filters of one request."""

MAX_NAMES = 20
"""Fields or facets of one request."""

MAX_QUERY_CHARS = 100_000
"""Characters of a query; a longer one is refused, not cut. One of four megabytes took 32 times its size in memory."""

MOST_EXACT = 2**53
"""Up to it every whole number is exact as a float. The parser makes a float of a whole number of more than 64 bits."""

Value = bool | int | float | str
"""A value that a filter asks for."""


def check_query_length(query: str) -> None:
    """Raises BodyTooLargeError for a query of more than MAX_QUERY_CHARS."""
    if len(query) > MAX_QUERY_CHARS:
        raise BodyTooLargeError(f"query has {len(query)} characters; a search takes at most {MAX_QUERY_CHARS}")


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


def _few_names(names: Any) -> Any:
    """Checks a list of names: few, and none twice."""
    if isinstance(names, list):
        if len(names) > MAX_NAMES:
            raise InvalidRequestError(f"{len(names)} names; at most {MAX_NAMES} are taken")
        texts = [name for name in names if isinstance(name, str)]
        if len(set(texts)) < len(texts):
            raise ValueError("a name stands there twice")
    return names


Values = Annotated[list[Value], BeforeValidator(_as_values)]
Filters = Annotated[dict[str, Values], BeforeValidator(_few_values)]
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


LINK_NAMES = tuple("filter" if name == "filters" else name for name in SearchRequest.model_fields)
"""The parameters of a search as a link: the fields of a body, whose filters are given one by one."""
REPEATED = ("filter", "lists", "fields", "facets")
"""Parameters that may stand several times in a link."""
