"""The reader of a document store: documents by row to show and rerank, and the rows that pass a filter.

The store is one SQLite file: it opens at once whatever its size, reads a document in microseconds through the page
cache that all processes share, and needs nothing beyond the standard library. (Arrow IPC would need pyarrow in the
service.) `index.documents` writes it.
"""

import fcntl
import hashlib
import json
import math
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from pipeline import artifacts
from pipeline.errors import ArtifactError, MissingError

KIND = "documents"
FILE = "documents.sqlite"

MAX_VALUE = 256
"""Maximum length in characters of a value that documents can be filtered by; a longer one is text, not a value."""
FILTER_BYTES = 32 * 2**20
"""Memory for the rows of recent filters, in bytes."""
ROWS_BYTES = 512
"""Memory of one remembered filter beside its rows, in bytes."""

Value = bool | int | float | str | Decimal
Rows = npt.NDArray[np.int64]

STATS = """SELECT count(*), coalesce(sum(trim(title || text, char(32, 9, 10, 13)) = ''), 0),
    count(*) - (SELECT count(*) FROM (SELECT DISTINCT title, text FROM documents)) FROM documents"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusStats:
    """Counts that show whether documents look as they should."""

    documents: int
    empty: int
    """Documents with neither title nor text."""
    duplicates: int
    """Documents with the title and text of an earlier one."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document as it was imported."""

    doc_id: str
    title: str
    text: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Other columns that have a value; dates and the like as text."""


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
        ((documents, empty, duplicates),) = self._documents.all(STATS)
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
            fields = self._documents.first("SELECT doc_id, title, text, extra FROM documents WHERE row = ?", int(row))
            if fields is None:
                raise MissingError(f"{self._path}: no document in row {row}; there are rows 0 to {self._rows - 1}")
            doc_id, title, text, extra = fields
            documents.append(Document(doc_id, title, text, json.loads(extra) if extra else {}))
        return documents

    def row_of(self, doc_id: str) -> int | None:
        """The row of the document with this id; None where there is none."""
        row = self._documents.first("SELECT row FROM documents WHERE doc_id = ?", doc_id)
        return None if row is None else int(row[0])

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
        return list(self.each_field())

    def each_field(self) -> Iterator[str]:
        """Yields the names of all fields, each by one look-up, so that a store may have any number of them."""
        query, name = "SELECT min(field) FROM fields WHERE field > ?", ""
        while (following := self._fields.all(query, name)) != [(None,)]:
            ((name,),) = following
            yield name

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
            raise damaged(path, error) from error

    def all(self, query: str, *values: int | str) -> list[tuple[Any, ...]]:
        """All rows of a query; none for a value that SQLite cannot hold: a lone surrogate, an integer beyond 64 bits.

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
            raise damaged(self._path, error) from error

    def first(self, query: str, value: int | str) -> tuple[Any, ...] | None:
        """The first row of a query, or None."""
        return next(iter(self.all(query, value)), None)

    def close(self) -> None:
        with self._turn:
            self._connection.close()
            self._let_go()


def value_text(value: Any) -> str:
    """A value as it is compared: numbers by their value (5, 5.0, 5.00 and "5" alike), dates as they are shown."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | Decimal) and math.isfinite(value):
        exact = Decimal(repr(value)) if isinstance(value, float) else value
        is_integer = exact == exact.to_integral_value()
        return str(int(exact)) if is_integer else f"{exact:f}".rstrip("0")
    return str(value)


def filter_values(held: Any) -> Iterator[str]:
    """The values of one column by which a document is found: its value, or each of a list; no long or nested ones."""
    for item in held if isinstance(held, list) else [held]:
        if not isinstance(item, dict | list | bytes) and not is_missing(item):
            text = value_text(item)
            if len(text) <= MAX_VALUE:
                yield text


def is_missing(value: Any) -> bool:
    """Whether a column has no value: null, or a float or decimal that is no number."""
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


def _v2_text(value: Any) -> str:
    """A value as stores of version 2 hold it."""
    return str(value) if isinstance(value, float) and not value.is_integer() else value_text(value)


def damaged(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{path}: not a readable document store ({error}); {artifacts.remedy(path)}")
