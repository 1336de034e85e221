"""Reads the documents of a data artifact: their texts, whole rows, and the digests by which a re-index knows them."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from index.digests import DIGEST_BYTES, Digests, Rows
from index.document_store import CorpusStats, is_missing, value_text
from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.errors import SchemaError
from pipeline.text import document_text

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("doc_id", "title", "text")
COLLECTION_ROWS = "collection_rows.npy"
"""The file of a shard with the row of each document among those of the whole collection, see `index.shards`."""
BLANKS = " \t\n\r"
"""White space; a document whose title and text hold nothing else counts as empty."""
BATCH = 1000
"""Documents that are in memory at once while they are read."""
LARGE_BATCH = 10 * BATCH
"""Documents that are in memory at once while they are hashed."""


@dataclass(frozen=True, slots=True)
class DocumentDigests:
    """Ids and digests of all documents of a data artifact, by row, and counts of what looks wrong."""

    doc_ids: list[str]
    texts: Digests
    """Digests of title and text as they are indexed and embedded."""
    contents: Digests
    """Digests of all that a document store keeps of a document, its id included."""
    stats: CorpusStats


def digests(data: Artifact) -> DocumentDigests:
    """The digests of the documents in the data, which is read once for all parts of an index.

    Raises:
        SchemaError: there is no document, or two have one doc_id.
    """
    return _digests(data.path.resolve())


@lru_cache(maxsize=1)  # An artifact never changes.
def _digests(path: Path) -> DocumentDigests:
    data = artifacts.load(path, verify=False)
    total = count(data)
    doc_ids: list[str] = []
    of_texts, of_contents, empty = bytearray(), bytearray(), 0
    title_lengths: list[int] = []
    for batch in _batches(data, batch_size=LARGE_BATCH):
        names, titles, texts = (batch.column(name).to_pylist() for name in COLUMNS)
        fields = batch.drop_columns(list(COLUMNS))
        extras = map(_held, _documents(fields)) if fields.num_columns else repeat("", len(batch))
        joined = _each_digest(document_text(*both).encode() for both in zip(titles, texts, strict=True))
        lengths = list(map(len, titles))
        rest = [
            f"{length} {doc_id} {extra!r}".encode()
            for length, doc_id, extra in zip(lengths, names, extras, strict=True)
        ]
        of_texts += b"".join(joined)
        of_contents += b"".join(_each_digest(map(add, joined, rest)))
        empty += _empty(batch)
        title_lengths += lengths
        doc_ids += names
    if len(set(doc_ids)) != total:
        repeated = next(doc_id for doc_id, times in Counter(doc_ids).items() if times > 1)
        raise SchemaError(f"documents: two have the same doc_id '{repeated}'; every document needs its own")
    texts = np.frombuffer(of_texts, np.uint8).reshape(total, DIGEST_BYTES)
    return DocumentDigests(
        doc_ids,
        texts=texts,
        contents=np.frombuffer(of_contents, np.uint8).reshape(total, DIGEST_BYTES),
        stats=CorpusStats(
            documents=total, empty=empty, duplicates=total - _distinct(texts, np.array(title_lengths, np.int64))
        ),
    )


def _held(document: dict[str, Any]) -> list[tuple[str, Any]]:
    """(column, value) of each column of a document that has a value, in the order of the columns."""
    return [item for item in document.items() if not is_missing(item[1])]


def _distinct(texts: Digests, title_lengths: Rows) -> int:
    """The number of different pairs of title and text.

    Args:
        texts: digests of title and text joined.
        title_lengths: where in the joined text the title ends, as other pairs may give the same joined text.
    """
    first, second = texts.view("<u8").T
    ordered = np.sort(first)
    repeated = np.isin(first, ordered[1:][ordered[1:] == ordered[:-1]])  # Few: only these are compared further.
    if not repeated.all():
        rest = np.flatnonzero(repeated)
        return len(texts) - len(rest) + (_distinct(texts[rest], title_lengths[rest]) if len(rest) else 0)
    order = np.lexsort((title_lengths, second, first))
    differs = np.zeros(len(texts) - 1, bool)
    for column in (first, second, title_lengths):
        differs |= np.diff(column[order]) != 0
    return 1 + int(differs.sum())


def content_digest(text: str) -> bytes:
    """The 16-byte BLAKE2b digest of a text."""
    (digest,) = _each_digest([text.encode()])
    return digest


def _each_digest(contents: Iterable[bytes]) -> list[bytes]:
    """The digests of many contents, in one loop without further calls, as a re-index hashes all documents."""
    blake2b = hashlib.blake2b
    return [blake2b(content, digest_size=DIGEST_BYTES).digest() for content in contents]


def _empty(batch: "pa.RecordBatch") -> int:
    """The number of documents with neither title nor text."""
    import pyarrow.compute as pc

    blank = [pc.equal(pc.utf8_trim(batch.column(name), characters=BLANKS), "") for name in ("title", "text")]
    return int(pc.sum(pc.and_(*blank)).as_py() or 0)


def field_digests(data: Artifact, field: str) -> Digests:
    """The digests of one column's texts, by row; see `texts`."""
    parts = bytearray()
    for _, text in texts(data, field):
        parts += content_digest(text)
    return np.frombuffer(parts, np.uint8).reshape(-1, DIGEST_BYTES)


def texts(data: Artifact, field: str = "", chosen: Rows | None = None) -> Iterator[tuple[str, str]]:
    """Yields doc_id and `document_text` of each document in row order, with one batch in memory.

    Args:
        field: the column whose text is given instead of the whole document's; empty where a document has no value.
        chosen: ascending rows; all where None.

    Raises:
        SchemaError: the documents have no such column.
    """
    if not field:
        for row in rows(data, COLUMNS, chosen):
            yield row["doc_id"], document_text(row["title"], row["text"])
        return
    known = _column_names(data)
    if field not in known:
        raise SchemaError(
            f"{data.path}: index.fields names {field}, and no document has such a column; there are {', '.join(known)}"
        )
    for row in rows(data, ["doc_id", *{field} - {"doc_id"}], chosen):
        yield row["doc_id"], field_text(row[field])


def field_text(value: Any) -> str:
    """The text of one column of a document: the elements of a list by lines, and nothing for a missing value."""
    items = value if isinstance(value, list) else [value]
    return "\n".join(value_text(item) for item in items if not is_missing(item))


def _column_names(data: Artifact) -> list[str]:
    import pyarrow.parquet as pq

    return list(pq.read_schema(data.file("documents.parquet")).names)


def is_shard(data: Artifact) -> bool:
    """Whether these are the documents of one shard, which may lack what the whole collection has."""
    return COLLECTION_ROWS in data.manifest.files


def count(data: Artifact) -> int:
    """The number of documents in the data.

    Raises:
        SchemaError: there is no document, so that nothing can be indexed.
    """
    import pyarrow.parquet as pq

    path = data.file("documents.parquet")
    total = int(pq.read_metadata(path).num_rows)
    if not total:
        raise SchemaError(f"{path}: there is no document in it, so nothing to index; look at the recipe's data.sources")
    return total


def rows(data: Artifact, columns: Sequence[str] | None = None, chosen: Rows | None = None) -> Iterator[dict[str, Any]]:
    """Yields documents as dicts in row order, BATCH at a time in memory. The file is read up to the last chosen row.

    Args:
        columns: all where None.
        chosen: ascending rows; all where None.
    """
    for batch in _batches(data, columns, chosen):
        yield from _documents(batch)


def _batches(
    data: Artifact, columns: Sequence[str] | None = None, chosen: Rows | None = None, batch_size: int = BATCH
) -> Iterator["pa.RecordBatch"]:
    """Yields what `rows` yields, as record batches that are at most `batch_size` documents long."""
    if chosen is not None and not len(chosen):
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(data.file("documents.parquet")) as file:
        start = 0
        for batch in file.iter_batches(batch_size=batch_size, columns=columns and list(columns)):
            end = start + len(batch)
            if chosen is None:
                yield batch
            else:
                first, last = np.searchsorted(chosen, [start, end])
                if last > first:
                    yield batch.take(pa.array(chosen[first:last] - start))
            start = end
            if chosen is not None and start > chosen[-1]:
                return


def _documents(batch: "pa.RecordBatch") -> list[dict[str, Any]]:
    """The rows of a batch as dicts; 16- and 32-bit floats become the shortest numbers that they stand for."""
    import pyarrow as pa

    def is_short_float(kind: pa.DataType) -> bool:
        kind = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        return bool(pa.types.is_float32(kind) or pa.types.is_float16(kind))

    documents: list[dict[str, Any]] = batch.to_pylist()
    for name in [item.name for item in batch.schema if is_short_float(item.type)]:
        for document in documents:
            document[name] = _shortest(document[name])
    return documents


def _shortest(value: Any) -> Any:
    """The shortest decimal number that a 32-bit float stands for: 4.1 and not 4.099999904632568."""
    if isinstance(value, list):
        return [_shortest(item) for item in value]
    return value if value is None else float(str(np.float32(value)))
