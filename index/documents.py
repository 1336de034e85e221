"""The stage that writes the document store: titles, texts and fields of all documents by row, in one SQLite file."""

import errno
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from index.document_store import FILE, KIND, STATS, DocumentStore, filter_values, is_missing, value_text
from pipeline import artifacts, schema
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import SchemaError
from pipeline.stage import Stage
from pipeline.text import document_text

STAGE = Stage(KIND, version=3, inputs={"data": ("data", "corpus")}, title="document store")
BATCH = 1000
"""Documents that are in memory at once while they are read."""

_CREATE = """CREATE TABLE documents
    (row INTEGER PRIMARY KEY, doc_id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, text TEXT NOT NULL, extra TEXT)"""
_CREATE_FIELDS = """CREATE TABLE fields
    (field TEXT NOT NULL, value TEXT NOT NULL, row INTEGER NOT NULL, PRIMARY KEY (field, value, row)) WITHOUT ROWID"""
_COLUMNS = ["doc_id", "title", "text"]


def texts(data: Artifact, field: str = "") -> Iterator[tuple[str, str]]:
    """doc_id and `document_text` of each document, in row order, a batch at a time in memory.

    Args:
        field: the column whose text is given instead of the whole document's; empty where a document has no value.

    Raises:
        SchemaError: the documents have no such column.
    """
    if not field:
        for row in _rows(data, _COLUMNS):
            yield row["doc_id"], document_text(row["title"], row["text"])
        return
    known = _column_names(data)
    if field not in known:
        raise SchemaError(
            f"{data.path}: index.fields names {field}, and no document has such a column; there are {', '.join(known)}"
        )
    for row in _rows(data, ["doc_id", *{field} - {"doc_id"}]):
        yield row["doc_id"], field_text(row[field])


def field_text(value: Any) -> str:
    """The text of one column of a document: the elements of a list by lines, and nothing for a missing value."""
    items = value if isinstance(value, list) else [value]
    return "\n".join(value_text(item) for item in items if not is_missing(item))


def _column_names(data: Artifact) -> list[str]:
    import pyarrow.parquet as pq

    return list(pq.read_schema(data.file("documents.parquet")).names)


def count(data: Artifact) -> int:
    """The number of documents in the data.

    Raises:
        SchemaError: there is no document, so that nothing can be indexed.
    """
    import pyarrow.parquet as pq

    path = data.file("documents.parquet")
    rows = int(pq.read_metadata(path).num_rows)
    if not rows:
        raise SchemaError(f"{path}: there is no document in it, so nothing to index; look at the recipe's data.sources")
    return rows


@STAGE
def make(workspace: Path, *, data: Artifact) -> Artifact:
    """The `documents` artifact of this data.

    Raises:
        SchemaError: no documents, or two with one doc_id.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        rows, path = count(data), staging.folder / FILE
        with _writing(path) as connection:
            connection.execute(_CREATE)
            connection.execute(_CREATE_FIELDS)
            for row, document in enumerate(_rows(data, None)):
                extra = {
                    name: value for name, value in document.items() if name not in _COLUMNS and not is_missing(value)
                }
                coded = json.dumps(extra, ensure_ascii=False, default=str) if extra else None
                known = (row, document["doc_id"], document["title"], document["text"], coded)
                connection.execute("INSERT INTO documents VALUES (?, ?, ?, ?, ?)", known)
                values = ((name, value, row) for name, held in extra.items() for value in filter_values(held))
                connection.executemany("INSERT OR IGNORE INTO fields VALUES (?, ?, ?)", values)
            connection.commit()
            _, empty, duplicates = connection.execute(STATS).fetchone()
        size = round(path.stat().st_size / rows, 1)
        return {"documents": rows, "empty": empty, "duplicates": duplicates, "bytes_per_document": size}

    return STAGE.make(workspace, config={}, inputs={"data": data}, build=build)


def restore(workspace: Path, store: Artifact) -> Artifact:
    """The `corpus` artifact of the documents in a store: documents.parquet, for when the original is gone.

    Values that documents can be filtered by keep their meaning; dates and the like come back as text.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        import pyarrow as pa

        reader = DocumentStore.load(store.path, verify=False)
        try:
            documents = [reader.get(row) for row in range(len(reader))]
        finally:
            reader.close()
        columns: dict[str, Any] = {name: [getattr(item, name) for item in documents] for name in _COLUMNS}
        for name in dict.fromkeys(name for document in documents for name in document.extra):
            values = [document.extra.get(name) for document in documents]
            try:
                columns[name] = pa.array(values)
            except (pa.ArrowInvalid, pa.ArrowTypeError):  # Values of several types.
                columns[name] = [None if value is None else value_text(value) for value in values]
        schema.write(pa.table(columns), staging.folder / "documents.parquet", "documents")
        return {"documents": len(documents)}

    return artifacts.make(
        workspace, "corpus", version=1, config={"restored": True}, inputs={"store": store}, build=build
    )


def _rows(data: Artifact, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """Documents as dicts, BATCH at a time in memory; all columns for None."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def is_short_float(kind: pa.DataType) -> bool:
        kind = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        return bool(pa.types.is_float32(kind) or pa.types.is_float16(kind))

    with pq.ParquetFile(data.file("documents.parquet")) as file:
        short = [item.name for item in file.schema_arrow if is_short_float(item.type)]
        for batch in file.iter_batches(batch_size=BATCH, columns=columns):
            rows = batch.to_pylist()
            for name in [name for name in short if name in batch.schema.names]:
                for row in rows:
                    row[name] = _shortest(row[name])
            yield from rows


def _shortest(value: Any) -> Any:
    """The shortest decimal number that a 32-bit float stands for: 4.1 and not 4.099999904632568."""
    if isinstance(value, list):
        return [_shortest(item) for item in value]
    return value if value is None else float(str(np.float32(value)))


@contextmanager
def _writing(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that writes a new file quickly: the artifact is synced and hashed as a whole afterwards."""
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        yield connection
    except sqlite3.IntegrityError as error:
        raise SchemaError(f"documents: two have the same doc_id ({error}); every document needs its own") from error
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            raise OSError(errno.ENOSPC, str(error), str(path)) from error
        raise
    finally:
        connection.close()
