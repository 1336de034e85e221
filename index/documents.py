"""The document store: titles, texts and fields of all documents by row, to show, rerank and filter them.

One SQLite file: it opens at once whatever its size, reads a document in microseconds through the page cache that all
processes share, and needs nothing beyond the standard library. (Arrow IPC would need pyarrow in the service.)
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from pipeline import artifacts, schema
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import ArtifactError, MissingError, SchemaError
from pipeline.stage import Stage
from pipeline.text import document_text

KIND = "documents"
STAGE = Stage(KIND, version=3, inputs={"data": ("data", "corpus")}, title="document store")
FILE = "documents.sqlite"
BATCH = 1000
MAX_VALUE = 256
"""Maximum length in characters of a value that documents can be filtered by; a longer one is text, not a value."""

FILTER_BYTES = 32 * 2**20
"""Memory for the rows of recent filters, in bytes."""
ROWS_BYTES = 512
"""Memory of one remembered filter beside its rows, in bytes."""

Value = bool | int | float | str | Decimal
Rows = npt.NDArray[np.int64]

_CREATE = """CREATE TABLE documents
    (row INTEGER PRIMARY KEY, doc_id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, text TEXT NOT NULL, extra TEXT)"""
_CREATE_FIELDS = """CREATE TABLE fields
    (field TEXT NOT NULL, value TEXT NOT NULL, row INTEGER NOT NULL, PRIMARY KEY (field, value, row)) WITHOUT ROWID"""
_COLUMNS = ["doc_id", "title", "text"]
_STATS = """SELECT count(*), coalesce(sum(trim(title || text, char(32, 9, 10, 13)) = ''), 0),
    count(*) - (SELECT count(*) FROM (SELECT DISTINCT title, text FROM documents)) FROM documents"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusStats:
    """Counts that show whether documents look as they should."""

    documents: int
    empty: int
    """Documents with neither title nor text."""
    duplicates: int
    """Documents whose title and text another one has too, less one of each group."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document as it was imported."""

    doc_id: str
    title: str
    text: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Other columns that have a value; dates and the like as text."""


def texts(data: Artifact) -> Iterator[tuple[str, str]]:
    """doc_id and `document_text` of each document, in row order, a batch at a time in memory."""
    for row in _rows(data, _COLUMNS):
        yield row["doc_id"], document_text(row["title"], row["text"])


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
                    name: value for name, value in document.items() if name not in _COLUMNS and not _missing(value)
                }
                coded = json.dumps(extra, ensure_ascii=False, default=str) if extra else None
                known = (row, document["doc_id"], document["title"], document["text"], coded)
                connection.execute("INSERT INTO documents VALUES (?, ?, ?, ?, ?)", known)
                values = ((name, value, row) for name, held in extra.items() for value in _values(held))
                connection.executemany("INSERT OR IGNORE INTO fields VALUES (?, ?, ?)", values)
            connection.commit()
            _, empty, duplicates = connection.execute(_STATS).fetchone()
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


class DocumentStore:
    """Reads documents; one store serves all threads of a process."""

    def __init__(self, path: Path, documents: "_StoreReader", fields: "_StoreReader", rows: int) -> None:
        """
        Args:
            documents, fields: two connections, so that reading the many rows of a broad filter holds up no document.
        """
        self._path, self._documents, self._fields, self._rows = path, documents, fields, rows
        self._filtering, self._looking = threading.Lock(), threading.Lock()
        self._filtered: LRUCache[bytes, Rows] = LRUCache(FILTER_BYTES, lambda rows: rows.nbytes + ROWS_BYTES)
        """Digest of field and values → rows; documents do not change."""

    @classmethod
    def load(cls, path: Path, *, verify: bool = True) -> "DocumentStore":
        """The store in a `documents` artifact; with `verify` its content is checked against the manifest first.

        Raises:
            MissingError: no such folder.
            ArtifactError: a damaged file, by name.
        """
        file = artifacts.load(path, KIND, verify=verify).file(FILE)
        documents, fields = _StoreReader(file), _StoreReader(file)
        ((rows,),) = documents.all("SELECT coalesce(max(row) + 1, 0) FROM documents")
        return cls(file, documents, fields, int(rows))

    def __len__(self) -> int:
        return self._rows

    def stats(self) -> CorpusStats:
        """Counts over all documents; reads every text once."""
        ((documents, empty, duplicates),) = self._documents.all(_STATS)
        return CorpusStats(documents=documents, empty=empty, duplicates=duplicates)

    def get(self, row: int) -> Document:
        """The document in this row.

        Raises:
            MissingError: there is no such row.
        """
        return self.get_many([row])[0]

    def get_many(self, rows: Sequence[int]) -> list[Document]:
        """The documents in these rows, in this order.

        Raises:
            MissingError: there is no such row.
        """
        documents = []
        for row in rows:
            fields = self._documents.one("SELECT doc_id, title, text, extra FROM documents WHERE row = ?", int(row))
            if fields is None:
                raise MissingError(f"{self._path}: no document in row {row}; there are rows 0 to {self._rows - 1}")
            doc_id, title, text, extra = fields
            documents.append(Document(doc_id, title, text, json.loads(extra) if extra else {}))
        return documents

    def rows_where(self, filters: Mapping[str, Sequence[Value]]) -> Rows:
        """Ascending rows of the documents that have, in each of these fields, one of its values.

        A field is a column beside doc_id, title and text; of a column of lists each element counts. Numbers are
        compared by value, whatever the type of the column: 5, 5.0, DECIMAL 5.00 and the text "5" are equal, and
        4.1 finds the 32-bit float that is nearest to it.

        Raises:
            MissingError: no document has such a field; names those there are. Or the store is older than fields.
        """
        passing: Rows | None = None
        for field_name, wanted in filters.items():
            # Stores before version 3 hold numbers as Python prints them, such as 1e-07.
            rows = self._rows_of(
                field_name, sorted({text for value in wanted for text in (value_text(value), _v2_text(value))})
            )
            passing = rows if passing is None else np.intersect1d(passing, rows, assume_unique=True)
        return np.arange(self._rows, dtype=np.int64) if passing is None else passing

    def _rows_of(self, field_name: str, values: Sequence[str]) -> Rows:
        """Ascending rows whose field has one of these values; the rows of recent filters are kept in memory."""
        values = [value for value in values if len(value) <= MAX_VALUE]  # No document is found by a longer one.
        key = hashlib.blake2b(json.dumps([field_name, *values]).encode(), digest_size=16).digest()
        rows = self._known(key)
        if rows is not None:
            return rows
        with self._filtering:  # One thread reads for all that want the same rows.
            rows = self._known(key)
            if rows is not None:
                return rows
            marks = ",".join("?" * len(values))
            query = f"SELECT row FROM fields WHERE field = ? AND value IN ({marks})"
            rows = np.unique(np.array([row for (row,) in self._fields.all(query, field_name, *values)], np.int64))
            if not len(rows) and not self._fields.all("SELECT 1 FROM fields WHERE field = ? LIMIT 1", field_name):
                known = ", ".join(self.fields()) or "none"
                raise MissingError(f"no document has a field '{field_name[:100]}'; there are: {known}")
            rows.flags.writeable = False
            if rows.nbytes + ROWS_BYTES <= FILTER_BYTES:
                with self._looking:
                    self._filtered[key] = rows
            return rows

    def _known(self, key: bytes) -> Rows | None:
        with self._looking:
            return self._filtered.get(key)

    def fields(self) -> list[str]:
        """The names of all fields that documents can be filtered by."""
        names: list[str] = []
        query = "SELECT min(field) FROM fields WHERE field > ?"
        while (following := self._fields.all(query, names[-1] if names else "")) != [(None,)]:
            names.append(following[0][0])
        return names

    def close(self) -> None:
        """Closes the file; reading is an error from then on."""
        self._documents.close()
        self._fields.close()


class _StoreReader:
    """One connection to a store, which threads use in turn.

    Raises:
        ArtifactError: a damaged file, by name.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._turn = path, threading.Lock()
        # `relevance releases gc` leaves a release alone while a process holds this lock. SQLite takes no such locks.
        handle = os.open(path, os.O_RDONLY)
        self._let_go = weakref.finalize(self, os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_SH)
        try:
            # Nothing writes to an artifact, so SQLite needs no locks and makes no files beside it.
            self._connection = sqlite3.connect(
                f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1", uri=True, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise _damaged(path, error) from error

    def all(self, query: str, *values: int | str) -> list[tuple[Any, ...]]:
        """All rows of a query; none for a value that no document can have, such as a lone surrogate or 65 bits.

        Raises:
            MissingError: the store is older than fields.
        """
        try:
            with self._turn:
                return self._connection.execute(query, values).fetchall()
        except (UnicodeEncodeError, OverflowError):
            return []
        except sqlite3.DatabaseError as error:
            if "no such table: fields" in str(error):
                raise MissingError(
                    "the documents of this release were stored before filters were known; run `relevance reindex`"
                ) from error
            raise _damaged(self._path, error) from error

    def one(self, query: str, value: int | str) -> tuple[Any, ...] | None:
        """The first row of a query, or None."""
        return next(iter(self.all(query, value)), None)

    def close(self) -> None:
        with self._turn:
            self._connection.close()
            self._let_go()


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


def _values(held: Any) -> Iterator[str]:
    """The values of one column by which a document is found: its value, or each of a list; no long or nested ones."""
    for item in held if isinstance(held, list) else [held]:
        if not isinstance(item, dict | list | bytes) and not _missing(item):
            text = value_text(item)
            if len(text) <= MAX_VALUE:
                yield text


def value_text(value: Any) -> str:
    """A value as it is compared: numbers by their value (5, 5.0, 5.00 and "5" alike), dates as they are shown."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | Decimal) and math.isfinite(value):
        exact = Decimal(repr(value)) if isinstance(value, float) else value
        whole = exact == exact.to_integral_value()
        return str(int(exact)) if whole else f"{exact:f}".rstrip("0")
    return str(value)


def _v2_text(value: Any) -> str:
    """A value as stores of version 2 hold it."""
    return str(value) if isinstance(value, float) and not value.is_integer() else value_text(value)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


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


def _damaged(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{path}: not a readable document store ({error}); {artifacts.remedy(path)}")
