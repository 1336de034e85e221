"""The reader of a document store: documents by row to show and rerank, and the rows that pass a filter.

A store is a SQLite file a segment (see `index.segments`): it opens at once whatever its size, reads a document in
microseconds through the page cache that all processes share, and needs nothing beyond the standard library. (Arrow IPC
would need pyarrow in the service.) `index.documents` writes it.
"""

import hashlib
import json
import math
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from index.segments import SegmentMap
from index.store_file import StoreReader, UseLock
from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError, MissingError
from pipeline.text import counted

KIND = "documents"
FILE = "documents.sqlite"

MAX_VALUE = 256
"""Maximum length in characters of a value that documents can be filtered by; a longer one is text, not a value."""
FILTER_BYTES = 32 * 2**20
"""Memory for the rows of recent filters, in bytes."""
ROWS_BYTES = 512
"""Memory of one remembered filter beside its rows, in bytes."""
FIRST_LOOK = 64
"""Documents of a field that are looked at first for one that is no tombstone."""

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
    """Other columns that have a value; decimals, dates and the like as the text by which a filter finds them."""


@dataclass(frozen=True, slots=True)
class StoreSegment:
    """One SQLite file of a store."""

    documents: StoreReader
    fields: StoreReader
    """A connection of its own, so that reading the many rows of a broad filter holds up no document."""
    rows: npt.NDArray[np.int32] | None
    """(documents,) row in the store of each row in the file, -1 for a tombstone; None where they are the same."""

    def living(self, numbers: Rows) -> Rows:
        """The rows in the store of rows in the file, without tombstones."""
        if self.rows is None:
            return numbers
        rows = self.rows[numbers].astype(np.int64)
        return rows[rows >= 0]

    def has_field(self, name: str) -> bool:
        """Whether a document that is no tombstone has a field of this name."""
        for limit in (FIRST_LOOK, -1):
            rows = self.fields.all("SELECT row FROM fields WHERE field = ? LIMIT ?", name, limit)
            if len(self.living(np.array([row for (row,) in rows], np.int64))):
                return True
            if len(rows) < limit:
                break
        return False


class DocumentStore:
    """Reads documents; one store serves all threads of a process."""

    def __init__(self, path: Path, segments: Sequence[StoreSegment], layout: SegmentMap, stats: CorpusStats) -> None:
        self._path, self._segments, self._layout, self._stats = path, segments, layout, stats
        self._starts = layout.starts
        self._use = UseLock(path)
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
        artifact = artifacts.load(path, KIND, verify=verify)
        stats = _stats(artifact)
        layout = SegmentMap.read(artifact, stats.documents)
        segments = []
        for number, segment in enumerate(layout.segments):
            file = artifact.file(segment.file(FILE))
            rows = None if layout.rows is None else layout.rows_of(number)
            reader = StoreReader(file)
            ((held,),) = reader.all("SELECT coalesce(max(row) + 1, 0) FROM documents")
            if held != segment.documents:
                raise ArtifactError(
                    f"{file}: holds {counted(held, 'document')}, {segment.documents} are listed; "
                    f"{artifacts.remedy(path)}"
                )
            segments.append(StoreSegment(reader, StoreReader(file), rows))
        return cls(path, segments, layout, stats)

    def __len__(self) -> int:
        return self._stats.documents

    def stats(self) -> CorpusStats:
        """Counts over all documents."""
        return self._stats

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
            if not 0 <= row < len(self):
                raise MissingError(f"{self._path}: no document in row {row}; there are rows 0 to {len(self) - 1}")
            position = int(row if self._layout.positions is None else self._layout.positions[row])
            number = bisect_right(self._starts, position) - 1
            reader, in_file = self._segments[number].documents, position - self._starts[number]
            fields = reader.first("SELECT doc_id, title, text, extra FROM documents WHERE row = ?", in_file)
            if fields is None:
                raise ArtifactError(f"{self._path}: row {row} is not in its file; {artifacts.remedy(self._path)}")
            doc_id, title, text, extra = fields
            documents.append(Document(doc_id, title, text, json.loads(extra) if extra else {}))
        return documents

    def row_of(self, doc_id: str) -> int | None:
        """The row of the document with this id; None where there is none."""
        for segment in self._segments:
            numbers = segment.documents.first("SELECT row FROM documents WHERE doc_id = ?", doc_id)
            if numbers is not None and len(living := segment.living(np.array(numbers, np.int64))):
                return int(living[0])
        return None

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
        return np.arange(len(self), dtype=np.int64) if passing is None else passing

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
            parts = [np.zeros(0, np.int64)]
            for segment in self._segments:
                numbers = [row for (row,) in segment.fields.all(query, field_name, *values)]
                parts.append(segment.living(np.array(numbers, np.int64)))
            rows = np.unique(np.concatenate(parts))
            if not len(rows) and not any(segment.has_field(field_name) for segment in self._segments):
                raise MissingError(unknown_field(field_name, self.fields()))
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
        """Yields the names of `fields` in ascending order, by few look-ups each, as a store may have any number."""
        query, name = "SELECT min(field) FROM fields WHERE field > ?", ""
        while True:
            following = [field for segment in self._segments for (field,) in segment.fields.all(query, name)]
            if not (names := [field for field in following if field is not None]):
                return
            name = min(names)
            if any(segment.has_field(name) for segment in self._segments):
                yield name

    def close(self) -> None:
        """Closes the files; reading is an error from then on."""
        for segment in self._segments:
            segment.documents.close()
            segment.fields.close()
        self._use.let_go()


def _stats(artifact: Artifact) -> CorpusStats:
    """The counts in the manifest; of a store from before they were kept there, by reading every text once."""
    metrics = artifact.metrics
    if "duplicates" in metrics:
        return CorpusStats(**{name: int(metrics[name]) for name in ("documents", "empty", "duplicates")})
    reader = StoreReader(artifact.file(FILE))
    ((documents, empty, duplicates),) = reader.all(STATS)
    reader.close()
    return CorpusStats(documents=documents, empty=empty, duplicates=duplicates)


def unknown_field(name: str, known: Sequence[str]) -> str:
    """The message that no document has a field, with the fields that there are, or how documents come to have some."""
    advice = "none; quickstart and reindex keep a column by --columns FIELD=COLUMN"
    return f"no document has a field '{name[:100]}'; there are: {', '.join(known) or advice}"


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
    """Whether a column has no value: null, or a float or decimal that is no finite number, as JSON has none."""
    return value is None or (isinstance(value, float | Decimal) and not math.isfinite(value))


def _v2_text(value: Any) -> str:
    """A value as stores of version 2 hold it."""
    return str(value) if isinstance(value, float) and not value.is_integer() else value_text(value)
