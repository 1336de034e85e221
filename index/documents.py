"""The stage that writes the document store: titles, texts and fields of all documents, one SQLite file a segment."""

import errno
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from index import document_reader, segments
from index.digests import Rows
from index.document_reader import COLUMNS, count, field_text, texts
from index.document_store import FILE, KIND, DocumentStore, filter_values, is_missing, value_text
from pipeline import artifacts, schema
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import SchemaError
from pipeline.stage import Stage

__all__ = ["STAGE", "count", "field_text", "make", "restore", "texts"]

STAGE = Stage(KIND, version=4, inputs={"data": ("data", "corpus"), "previous": KIND}, title="document store")

_CREATE = """CREATE TABLE documents
    (row INTEGER PRIMARY KEY, doc_id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, text TEXT NOT NULL, extra TEXT)"""
_CREATE_FIELDS = """CREATE TABLE fields
    (field TEXT NOT NULL, value TEXT NOT NULL, row INTEGER NOT NULL, PRIMARY KEY (field, value, row)) WITHOUT ROWID"""


@STAGE
def make(workspace: Path, *, data: Artifact, previous: Artifact | None = None) -> Artifact:
    """The `documents` artifact of this data.

    Args:
        previous: an earlier artifact, whose segments are shared where their documents are unchanged. It is not part of
            the fingerprint, as it changes only how long the work takes and which files hold the documents.

    Raises:
        SchemaError: no documents, or two with one doc_id.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        digests = document_reader.digests(data)
        same_form = previous is not None and previous.manifest.version == STAGE.version
        plan = segments.plan(previous if same_form else None, [FILE], digests.contents)
        plan.write(staging)
        if len(plan.written):
            _write_segment(staging.folder / plan.folder / FILE, data, plan.written)
        size = segments.size(staging.folder, FILE)
        figures = {"bytes_per_document": round(size / digests.stats.documents, 1), **plan.figures()}
        return {**asdict(digests.stats), **figures}

    return STAGE.make(workspace, config={}, inputs={"data": data}, build=build)


def _write_segment(path: Path, data: Artifact, rows: Rows) -> None:
    """Writes these documents of the data, ascending rows, into a new file; the first gets row 0 there."""
    with _writing(path) as connection:
        connection.execute(_CREATE)
        connection.execute(_CREATE_FIELDS)
        for row, document in enumerate(document_reader.rows(data, chosen=rows)):
            extra = {name: value for name, value in document.items() if name not in COLUMNS and not is_missing(value)}
            coded = json.dumps(extra, ensure_ascii=False, default=value_text) if extra else None
            known = (row, document["doc_id"], document["title"], document["text"], coded)
            connection.execute("INSERT INTO documents VALUES (?, ?, ?, ?, ?)", known)
            values = ((name, value, row) for name, held in extra.items() for value in filter_values(held))
            connection.executemany("INSERT OR IGNORE INTO fields VALUES (?, ?, ?)", values)
        connection.commit()


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
        columns: dict[str, Any] = {name: [getattr(item, name) for item in documents] for name in COLUMNS}
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


@contextmanager
def _writing(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that writes a new file quickly: the artifact is synced and hashed as a whole afterwards."""
    path.touch()  # On a full disk this says why, where SQLite says only that it cannot open a file.
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
