"""The candidates of one shard for a query, as the service that asks all shards reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from index.document_store import Document, Rows, Value
from index.hits import Hit
from index.semantic import join
from pipeline import text
from pipeline.command_line import typed
from pipeline.errors import MissingError
from serving.errors import InvalidRequestError, NotServedError
from serving.runtime.deadline import Deadline
from serving.scoring.candidates import CandidatePool
from serving.scoring.contents import SearchableContents
from serving.scoring.embedder import Vector
from serving.scoring.searcher import Searcher


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardQuery:
    """A query to one shard."""

    query: str
    depth: int
    """Documents that BM25 and the encoder each bring."""
    vector: Sequence[float] | None
    """(dimensions,) the encoder's vector of the query; None where there is none, so that BM25 alone finds."""
    filters: Mapping[str, Sequence[Value]]
    terms: bool
    """Whether the part of each matched term in BM25 is wanted."""
    matches: bool = False
    """Whether the terms of the query that the index knows are wanted."""
    features: Sequence[str] = ()
    """Features of single fields that the asking service weighs, such as bm25.title."""


def answer(searcher: Searcher, request: ShardQuery, deadline: Deadline) -> dict[str, Any]:
    """The candidates of a shard for a query, with scores and contents; rows are those of the whole collection.

    Raises:
        NotServedError: the release is no shard, or has no index for one of the features.
        ServingError: a score is not finite, so a file of the release is damaged.
        InvalidRequestError: the vector has another width than the encoder's, or is not finite.
        DeadlineError: the deadline has passed.
        ClientGoneError: the client has closed the connection.
    """
    retrieval = searcher.retrieval
    contents = retrieval.contents
    shard, rows_of_whole = _shard_of(searcher, request.features)
    vector = _vector(request, searcher.encoder.dimensions)
    query = text.clean(request.query)
    among, known_filter = _filtered_rows(contents, request.filters)
    deadline.check()
    by_words = retrieval.by_words(query, request.depth, among)
    deadline.check()
    by_meaning = [] if vector is None else retrieval.by_meaning(vector, request.depth, among)
    deadline.check()
    rows = join(by_words, by_meaning)
    pool = retrieval.pool(query, rows, vector, request.features)
    nearest = {} if vector is None else contents.semantic.nearest_passages(vector, rows)
    documents = [
        {
            "row": int(rows_of_whole[row]),
            **_content(document),
            "passage": asdict(nearest[row]) if row in nearest else None,
        }
        for row, document in zip(rows, contents.documents.get_many(rows), strict=True)
    ]
    terms = contents.lexical.term_scores(query, rows) if request.terms else [{} for _ in rows]
    deadline.check()

    return {
        "release": searcher.release,
        "collection": searcher.collection_id,
        "shard": shard,
        "known_filter": known_filter,
        "field_names": searcher.fields,
        "query_terms": _query_terms(contents, query) if request.matches else None,
        "lexical": _ranked(by_words, rows_of_whole),
        "semantic": _ranked(by_meaning, rows_of_whole),
        "documents": [
            {**document, **_scores(pool, number), "terms": terms[number]} for number, document in enumerate(documents)
        ],
    }


def _shard_of(searcher: Searcher, features: Sequence[str]) -> tuple[int, Rows]:
    """The number of the shard that this release holds, and the row of each of its documents in the collection.

    Raises:
        NotServedError: the release is no shard, or has no index for one of the features.
    """
    contents = searcher.retrieval.contents
    collection, rows_of_whole = contents.collection, contents.collection_rows
    if collection is None or rows_of_whole is None or not searcher.collection_id:
        reindex = typed("reindex --documents DOCUMENTS --shards N", searcher.workspace)
        raise NotServedError(f"this release is no shard of a collection; `{reindex}` makes some")
    if lacking := [name for name in features if name not in contents.fields.features]:
        raise NotServedError(f"this shard has no index that gives {lacking[0][:100]}; make the shards again")
    return collection.shard, rows_of_whole


def _ranked(hits: Sequence[Hit], rows_of_whole: Rows) -> list[tuple[int, float]]:
    """The row in the collection and the score of each hit, in their order."""
    return [(int(rows_of_whole[hit.row]), float(hit.score)) for hit in hits]


def _content(document: Document) -> dict[str, Any]:
    """The texts and columns of a document."""
    return {"doc_id": document.doc_id, "title": document.title, "text": document.text, "fields": document.extra}


def _scores(pool: CandidatePool, number: int) -> dict[str, Any]:
    """The scores of one candidate of a pool."""
    return {
        "bm25": float(pool.bm25[number]),
        "cosine": None if pool.cosines is None else float(pool.cosines[number]),
        "features": {name: values[number] for name, values in pool.fields.items()},
    }


def _query_terms(contents: SearchableContents, query: str) -> dict[str, Any]:
    known = contents.lexical.query_terms(query)
    return {"language": known.language, "version": known.version, "shares": dict(known.shares)}


def _vector(request: ShardQuery, dimensions: int) -> Vector | None:
    """The query's vector, (dimensions,); raises InvalidRequestError where it has another width or is not finite."""
    if request.vector is None:
        return None
    with np.errstate(over="ignore"):  # A number beyond float32 is refused as one that is not finite.
        vector = np.array(request.vector, np.float32)
    if vector.shape != (dimensions,) or not np.isfinite(vector).all():
        raise InvalidRequestError(f"vector: must be {dimensions} finite numbers")
    return vector


def _filtered_rows(contents: SearchableContents, filters: Mapping[str, Sequence[Value]]) -> tuple[Rows | None, bool]:
    """The rows that pass the filters, None without filters; and whether any document here has such fields."""
    if not filters:
        return None, True
    try:
        return contents.documents.rows_where(filters), True
    except MissingError:
        # Another shard may have documents with this field.
        return np.zeros(0, np.int64), False
