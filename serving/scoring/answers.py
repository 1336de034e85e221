"""The results of a search: what was requested beside the lists, and how documents become results."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from index.document_store import Document, filter_values, unknown_field
from index.highlights import QueryTerms, Span
from index.hits import Hit
from pipeline.features import Fusion
from serving.errors import InvalidRequestError
from serving.runtime.deadline import Deadline
from serving.scoring.best_passages import BestPassage

ListName = Literal["lexical", "semantic", "reranked"]
LISTS: tuple[ListName, ...] = ("lexical", "semantic", "reranked")
"""The lists of a search: by BM25, by the encoder, and by all models together."""
Missing = Literal["ranker", "encoder"]

MAX_FACET_VALUES = 20
"""Values of one facet, the most frequent first."""
MAX_TERMS = 20
"""Matched terms of one document, those with the largest part in its BM25 first."""
MAX_TITLE_CHARS = 1000
"""Characters of a title in which terms are looked for."""
MAX_FIELD_CHARS = 4_000_000
"""Characters of the chosen fields of all results together, as JSON would hold them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchDetails:
    """The parts of an answer that a search gives on request."""

    lists: Sequence[ListName] = LISTS
    """Lists to answer; a model that none of them needs does not run."""
    fields: Sequence[str] = ()
    """Stored columns that each result carries."""
    facets: Sequence[str] = ()
    """Fields whose values are counted over the candidates."""
    explain: bool = False
    """Whether the final list says where each score comes from."""
    matches: bool = False
    """Whether each result says where the terms of the query stand in its title and snippet."""
    min_relevance: float = 0.0
    """Results of the final list that the ranker gives less are left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureShare:
    """The part of one feature in a fused score."""

    value: float
    weight: float
    share: float
    """value · weight; the shares of a document sum to its score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """The reasons for one result's place in the final list."""

    terms: Mapping[str, float]
    """Query term, as the index has it, → its part in the document's BM25; the largest first."""
    features: Mapping[str, FeatureShare]
    """Feature of `pipeline.features` → its part in the fused score; empty where a model was missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TermMatches:
    """Where terms of the query stand in what a result shows: start and end in characters, ascending."""

    title: Sequence[Span]
    snippet: Sequence[Span]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One document in one list."""

    doc_id: str
    title: str
    snippet: str
    score: float
    """BM25, cosine, or the fused score; comparable within one list only."""
    rank: int
    """From 1."""
    lexical_rank: int | None
    """Where BM25 had it among what it found; None when it did not find it."""
    semantic_rank: int | None
    rank_change: int | None
    """Number of ranks that it rose in the final list (fell, when negative) against the order that BM25 and the encoder
    give together before the ranker. None in the other lists."""
    relevance: float | None
    """The ranker's own score in [0, 1]; None in the other lists."""
    fields: Mapping[str, Any] | None = None
    """Stored columns that were asked for; null for a column that the document lacks."""
    explain: Explanation | None = None
    """Only in the final list of a search that asks for it."""
    matches: TermMatches | None = None
    """None where they were not asked for."""
    passage: BestPassage | None = None
    """The passage that the snippet is taken from; None where neither ranker nor encoder read the document in parts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MissingShard:
    """A shard whose documents are not in an answer."""

    shard: str
    """Its address."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCounts:
    """The shards that an answer rests on."""

    answered: int
    of: int
    missing: Sequence[MissingShard]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """Three lists for one query, and what they cost."""

    query: str
    release: str
    lexical: list[Answer]
    semantic: list[Answer]
    reranked: list[Answer]
    milliseconds: Mapping[str, float]
    """Part of the search → its time. Parts: encode, documents, rerank, total; lexical and semantic, or shards."""
    candidates: int
    """Documents that both ways brought together; the ranker looks at all of them."""
    cache_hits: int
    cache_misses: int
    """Counts of the query's vector and the candidates' scores together."""
    fits: bool | None = None
    """False where no document has a word of the query and the encoder finds nothing nearer than for random letters.
    None where that is not known: the encoder did not answer, or shards hold the documents and none has a word."""
    facets: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Field → value → number of candidates that have it, the most frequent first."""
    degraded: Missing | None = None
    """The first model that gave nothing in time or failed: without the ranker the final order is that of BM25 and
    encoder, without the encoder that of BM25. None where all models answered."""
    shards: ShardCounts | None = None
    """None where the release has the documents itself."""
    model_failed: bool = False
    """Whether the model that is missing raised an error; False where it was only late or refused."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Places of rows, from 1, in the orders before the final one."""

    lexical: Mapping[int, int]
    semantic: Mapping[int, int]
    before: Mapping[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownDocuments:
    """The contents of the results of one search, by row."""

    documents: Mapping[int, Document]
    snippets: Mapping[int, str]
    passages: Mapping[int, BestPassage]
    """Empty where no document was read in passages."""
    ranks: Ranks
    fields: Mapping[int, Mapping[str, Any]]
    """Empty where no field was asked for."""
    matches: Mapping[int, TermMatches]
    """Empty where they were not asked for."""


def results(
    hits: Sequence[Hit],
    shown: ShownDocuments,
    relevances: Mapping[int, float] | None = None,
    explanations: Mapping[int, Explanation] | None = None,
) -> list[Answer]:
    """One list of a search.

    Args:
        relevances: the ranker's score in [0, 1] by row; only for the final list, and empty where the ranker is missing.
        explanations: row → explanation; only where they were asked for.
    """
    return [
        Answer(
            doc_id=hit.doc_id,
            title=shown.documents[hit.row].title,
            snippet=shown.snippets[hit.row],
            score=float(hit.score),
            rank=rank,
            lexical_rank=shown.ranks.lexical.get(hit.row),
            semantic_rank=shown.ranks.semantic.get(hit.row),
            rank_change=shown.ranks.before[hit.row] - rank if relevances is not None else None,
            relevance=relevances.get(hit.row) if relevances is not None else None,
            fields=shown.fields.get(hit.row),
            explain=explanations.get(hit.row) if explanations is not None else None,
            matches=shown.matches.get(hit.row),
            passage=shown.passages.get(hit.row),
        )
        for rank, hit in enumerate(hits, start=1)
    ]


def explanation(terms: Mapping[str, float], fusion: Fusion | None, row: Sequence[float] | None) -> Explanation:
    """The reasons for one document's place.

    Args:
        terms: every matched term with its part in BM25.
        fusion: the release's; None where it has none.
        row: (features,) of the document, in the order of `fusion.names`; None where a model was missing.
    """
    features: dict[str, FeatureShare] = {}
    if fusion is not None and row is not None:
        for name, value in zip(fusion.names, row, strict=True):
            weight = fusion.weights[name]
            features[name] = FeatureShare(value=float(value), weight=weight, share=weight * float(value))
    best = sorted(terms.items(), key=lambda item: -item[1])[:MAX_TERMS]
    return Explanation(terms=dict(best), features=features)


def term_matches(
    terms: QueryTerms, documents: Mapping[int, Document], snippets: Mapping[int, str], deadline: Deadline
) -> dict[int, TermMatches]:
    """Where the terms stand in the title and the snippet of each document, by row.

    Raises:
        DeadlineError: the deadline has passed.
        ClientGoneError: the client has closed the connection.
    """
    matches = {}
    for row, document in documents.items():
        deadline.check()
        title = document.title[:MAX_TITLE_CHARS]
        matches[row] = TermMatches(title=terms.spans(title), snippet=terms.spans(snippets[row]))
    return matches


def check_known(names: Iterable[str], known: Sequence[str]) -> None:
    """Raises InvalidRequestError for a name that is not one of the known fields, naming those there are."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidRequestError(unknown_field(unknown[0], known))


def facets(names: Iterable[str], documents: Iterable[Document], deadline: Deadline) -> dict[str, dict[str, int]]:
    """Counts of the values of each field over the documents; the most frequent values first, then by name.

    Raises:
        DeadlineError: the deadline has passed.
        ClientGoneError: the client has closed the connection.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for document in documents:
        deadline.check()
        for name, counter in counts.items():
            counter.update(set(filter_values(document.extra.get(name))))
    return {
        name: dict(sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:MAX_FACET_VALUES])
        for name, counter in counts.items()
    }


def chosen_fields(
    names: Sequence[str], documents: Mapping[int, Document], deadline: Deadline
) -> dict[int, dict[str, Any]]:
    """The named columns of each document, by row; null for one that a document lacks.

    Raises:
        InvalidRequestError: they have more than MAX_FIELD_CHARS characters together.
        DeadlineError: the deadline has passed.
        ClientGoneError: the client has closed the connection.
    """
    chosen, left = {}, MAX_FIELD_CHARS
    for row, document in documents.items():
        deadline.check()
        columns = {"doc_id": document.doc_id, "title": document.title, "text": document.text, **document.extra}
        chosen[row] = {name: columns.get(name) for name in names}
        left -= sum(len(str(value)) for value in chosen[row].values())
        if left < 0:
            raise InvalidRequestError(
                f"the fields of these documents have more than {MAX_FIELD_CHARS} characters; name fewer fields, or "
                "send a smaller top_n"
            )
    return chosen
