"""Oddities of judged data that do not prevent training, each with the number of times that it occurs and examples."""

from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data import judgments, splits, validation
from pipeline.data.checks.text_lengths import estimate_tokens
from pipeline.data.formats.text_files import STRING
from pipeline.data.validation import ValidatedTables
from pipeline.text import normalise

EXAMPLES = 3
"""Examples shown of each notice."""

LONG_QUERY_TOKENS = 64
"""Estimated tokens of a query above which it is odd."""

_SUSPICIOUS = {
    "no letters": r"^[^\p{L}]*$",
    "markup": r"<[A-Za-z/!][^>]*>|&(?:[A-Za-z]+|#[0-9]+);",
    "a web address": r"(?i)^\s*(?:https?://|www\.)",
    "control characters": r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]",
    "characters lost in a conversion": "\N{REPLACEMENT CHARACTER}",
}
"""Oddity of a query → the pattern that finds it."""


@dataclass(frozen=True, slots=True)
class Notice:
    """An oddity that does not prevent training: how often it occurs, and examples."""

    count: int
    examples: tuple[str, ...]


def notices(usable: ValidatedTables, judged: pd.DataFrame) -> dict[str, Notice]:
    """Oddity → how often it occurs, and examples; those that do not occur are left out.

    Args:
        usable: the data without its rows that cannot be used.
        judged: query_id, doc_id and grade of its judgments.
    """
    tables = {"documents": usable.documents, "queries": usable.queries, "judgments": usable.judgments}
    again = judged[validation.equal_judgments(usable.judgments)]
    occurrences = {
        "tables without rows": [name for name, table in tables.items() if not table.num_rows],
        **_odd_queries(usable, judged),
        **_odd_documents(usable.documents),
        "equal judgments of one pair, which are merged": _pairs(usable, again),
    }
    return {
        name: Notice(len(values), tuple(value[:60] for value in values[:EXAMPLES]))
        for name, values in occurrences.items()
        if len(values)
    }


def _odd_queries(usable: ValidatedTables, judged: pd.DataFrame) -> dict[str, list[str]]:
    """Oddity → the queries that have it."""
    text = usable.queries["text"]
    one_character = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(text)), 1)
    long = pc.greater(estimate_tokens(text), LONG_QUERY_TOKENS)
    has_judgments = pc.is_in(usable.queries["query_id"], value_set=pa.array(judged["query_id"].unique(), text.type))
    normal = pd.Series([normalise(value) for value in text.to_pylist()], dtype=object)
    across = splits.shared(judgments.texts_of(usable.queries, usable.judgments), judgments.published(usable.judgments))
    return {
        "queries of one character": _where(text, one_character),
        f"queries of more than {LONG_QUERY_TOKENS} tokens": _where(text, long),
        **{
            f"queries with {name}": _where(text, pc.match_substring_regex(text, pattern))
            for name, pattern in _SUSPICIOUS.items()
        },
        "queries without judgments": _where(text, pc.invert(has_judgments)),
        "queries that are the same when normalised": normal[normal.duplicated()].tolist(),
        "queries in more than one published split": [f"{query} ({', '.join(names)})" for query, names in across],
    }


def _odd_documents(documents: pa.Table) -> dict[str, list[str]]:
    """Oddity → the ids of the documents that have it."""
    content = documents.select(["title", "text"]).to_pandas()
    ids = documents["doc_id"].to_pandas()
    empty = (content == "").all(axis=1)
    return {
        "documents without title and text": ids[empty].tolist(),
        "documents of the same title and text": ids[content.duplicated() & ~empty].tolist(),
    }


def _pairs(usable: ValidatedTables, rows: pd.DataFrame) -> list[str]:
    """The pairs of some judgments as texts: the query, and the title of the document or its text."""
    documents = usable.documents.filter(pc.is_in(usable.documents["doc_id"], pa.array(rows["doc_id"], STRING)))
    texts = documents.select(["doc_id", "title", "text"]).to_pylist()
    titles = {row["doc_id"]: row["title"] or row["text"] for row in texts}
    queries = dict(zip(*usable.queries.select(["query_id", "text"]).to_pydict().values(), strict=True))
    return [
        f"{queries.get(row.query_id, row.query_id)[:28]}: {titles.get(row.doc_id, row.doc_id)[:28]}"
        for row in rows.itertuples()
    ]


def _where(texts: pa.ChunkedArray, mask: pa.ChunkedArray) -> list[str]:
    """The texts at which the mask is true."""
    chosen: list[str] = texts.filter(mask).to_pylist()
    return chosen
