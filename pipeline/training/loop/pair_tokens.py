"""Pairs of a query and a document with their texts, as token ids. Texts are tokenised once a stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline import schema, text
from pipeline.artifacts import Artifact
from pipeline.errors import SchemaError
from pipeline.prefixes import PrefixTokenizer
from pipeline.progress import bar
from pipeline.tokens import PairTemplate

Ints = NDArray[np.int64]

TOKENISE_BATCH = 1024
"""Texts that are tokenised at once."""

SAMPLED = ("negative", "unjudged", "mined")
"""Sources of pairs whose grade 0 nobody gave; see `pipeline.data.candidates`."""


@dataclass(frozen=True, slots=True)
class Ragged:
    """Many lists of token ids end to end."""

    ids: NDArray[np.int32]
    starts: Ints
    """(lists + 1,) index of the first id of each list; the last is the number of ids."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> list[int]:
        ids: list[int] = self.ids[self.starts[number] : self.starts[number + 1]].tolist()
        return ids

    @property
    def lengths(self) -> Ints:
        return np.diff(self.starts)

    @classmethod
    def of(cls, lists: Sequence[Sequence[int] | NDArray[np.int32]]) -> "Ragged":
        """These lists end to end."""
        ids = [np.asarray(item, dtype=np.int32) for item in lists]
        starts = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        return cls(np.concatenate(ids) if ids else np.zeros(0, np.int32), starts)

    def taken(self, numbers: Ints) -> "Ragged":
        """The lists with these numbers, in this order; a number may repeat."""
        return Ragged.of([self.ids[self.starts[number] : self.starts[number + 1]] for number in numbers.tolist()])


def tokenise(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int, label: str = "tokenise") -> Ragged:
    """The first `max_tokens` ids of each text, without special tokens; `label` names the progress bar."""
    prefixes = PrefixTokenizer.of(tokenizer)
    lists: list[NDArray[np.int32]] = []
    with bar(label, len(texts), "texts") as advance:
        for begin in range(0, len(texts), TOKENISE_BATCH):
            batch = texts[begin : begin + TOKENISE_BATCH]
            lists.extend(np.array(ids, dtype=np.int32) for ids in prefixes.ids(batch, max_tokens))
            advance(len(batch))
    return Ragged.of(lists)


@dataclass(frozen=True, slots=True)
class Pairs:
    """A pairs table with the tokens of its texts; entry i of each array belongs to pair i."""

    rows: Ints
    """(pairs,) row_id, by which teacher scores are joined."""
    query: Ints
    """(pairs,) number of the query in `queries`; also the group of the losses."""
    document: Ints
    """(pairs,) number of the document in `documents`."""
    grades: Ints
    """(pairs,) grade; below 0 where the pair has none."""
    split: NDArray[np.str_]
    queries: Ragged
    documents: Ragged
    own_documents: Mapping[int, int] = field(default_factory=dict)
    """Number of a query → number of the document that it is itself, which is none of its negatives."""
    clicked: NDArray[np.bool_] | None = None
    """(pairs,) whether a pair's grade rests on clicks; None where no pair's does. See `rests_on_clicks`."""

    def __len__(self) -> int:
        return len(self.rows)

    def indices(self, split: str) -> Ints:
        """The indices of a split's pairs, in table order."""
        return np.flatnonzero(self.split == split)


def read_pairs(
    data: Artifact, pairs: Artifact, tokenizer: Tokenizer, *, max_query_tokens: int, max_tokens: int, split: str = ""
) -> Pairs:
    """The pairs of an artifact with their texts' tokens, from the documents and queries of the data.

    Args:
        split: reads only the pairs of this split; empty for all.

    Raises:
        SchemaError: a pair names a query or document that the data does not have; names the first.
    """
    texts = read_texts(data, pairs, split)
    return Pairs(
        rows=texts.table.column("row_id").to_numpy().astype(np.int64),
        query=texts.query,
        document=texts.document,
        grades=texts.table.column("grade").to_numpy().astype(np.int64),
        split=np.array(texts.table.column("split").to_pylist(), dtype=np.str_),
        queries=tokenise(tokenizer, texts.queries, max_query_tokens, "tokenise queries"),
        documents=tokenise(tokenizer, texts.documents, max_tokens, "tokenise documents"),
        own_documents=_own_documents(texts.table, schema.own_documents(data.path)),
        clicked=rests_on_clicks(texts.query, texts.table.column("source").to_pylist()),
    )


def rests_on_clicks(query: Ints, sources: Sequence[str]) -> NDArray[np.bool_] | None:
    """(pairs,) whether a pair's grade was made from clicks or thumbs, or is that of a sampled negative of a query that
    nothing else judged; None where no grade was.
    """
    clicked = np.array([source in schema.WEAK for source in sources], dtype=np.bool_)
    if not clicked.any():
        return None
    sampled = np.array([source in SAMPLED for source in sources], dtype=np.bool_)
    by_others = np.isin(query, query[~clicked & ~sampled])
    by_clicks = np.isin(query, query[clicked])
    rests: NDArray[np.bool_] = clicked | (sampled & by_clicks & ~by_others)
    return rests


def _own_documents(table: pa.Table, own: frozenset[str]) -> dict[int, int]:
    """Numbers of the queries in `own` → numbers of the documents of the same id, where the table has both."""
    queries, documents = (
        {name: number for number, name in enumerate(_numbered(table, column)[0])} for column in ("query_id", "doc_id")
    )
    return {queries[name]: documents[name] for name in own if name in queries and name in documents}


@dataclass(frozen=True, slots=True)
class PairTexts:
    """A pairs table and its texts."""

    table: pa.Table
    query: Ints
    """(pairs,) number in `queries`."""
    document: Ints
    """(pairs,) number in `documents`."""
    queries: list[str]
    documents: list[str]


def read_texts(data: Artifact, pairs: Artifact, split: str = "") -> PairTexts:
    """The pairs of an artifact, or of one split of it, with their texts, from the documents and queries of the data.

    Queries and documents that the data does not have may stand in a queries.parquet and a documents.parquet beside the
    pairs.

    Raises:
        SchemaError: a pair names a query or document that is in neither; names the first.
    """
    table = schema.read(pairs.file("pairs.parquet"), "pairs")
    if split:
        table = table.filter(pc.field("split") == split)
    query_ids, query = _numbered(table, "query_id")
    doc_ids, document = _numbered(table, "doc_id")
    query_files, document_files = (
        [artifact.file(name) for artifact in (data, pairs) if name in artifact.manifest.files]
        for name in ("queries.parquet", "documents.parquet")
    )
    queries = _texts(query_files, "query_id", ("text",), query_ids)
    documents = _texts(document_files, "doc_id", ("title", "text"), doc_ids)
    return PairTexts(
        table,
        query,
        document,
        [query_text for (query_text,) in queries],
        [text.document_text(title, body) for title, body in documents],
    )


def _numbered(table: pa.Table, column: str) -> tuple[list[str], Ints]:
    """The distinct ids of a column, ascending, and the number of each row's id among them."""
    values = table.column(column)
    names = sorted(values.unique().to_pylist())  # An array of NumPy's would hold each id as wide as the longest.
    numbers = pc.index_in(values, value_set=pa.array(names, values.type))
    return names, numbers.to_numpy().astype(np.int64)


def _texts(paths: Sequence[Path], key: str, columns: Sequence[str], wanted: Sequence[str]) -> list[tuple[str, ...]]:
    """The columns of the rows with these ids in any of the files, in the order of the ids."""
    kept = pc.field(key).isin(pa.array(wanted, pa.string()))
    texts_of: dict[str, tuple[str, ...]] = {}
    for path in paths:
        table = pq.read_table(path, columns=[key, *columns], filters=kept)
        texts = [table.column(name).to_pylist() for name in columns]
        texts_of |= zip(table.column(key).to_pylist(), zip(*texts, strict=True), strict=True)
    missing = [name for name in wanted if name not in texts_of]
    if missing:
        raise SchemaError(
            f"{paths[0]}: {len(missing)} of the pairs' ids are missing, such as {key} '{missing[0]}'; "
            "make the pairs again from this data"
        )
    return [texts_of[name] for name in wanted]


def pair_lengths(pairs: Pairs, template: PairTemplate) -> Ints:
    """(pairs,) tokens of each assembled input."""
    query = np.minimum(pairs.queries.lengths[pairs.query], template.max_query_tokens)
    room = template.max_tokens - template.special_tokens - query
    return np.asarray(query + np.minimum(pairs.documents.lengths[pairs.document], room) + template.special_tokens)
