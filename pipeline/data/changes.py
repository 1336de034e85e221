"""Changes in a database since a re-index: documents that are new or changed, ids that are gone, the new watermark.

    no release yet, or its watermark does not fit any more    all documents are read
    else                                                      rows at or above the last watermark, and deletions

The watermark is kept in the artifact of the documents that it belongs to. So a rollback also brings back the older
watermark, and a re-index that is never published leaves the watermark of the live release as it is.
"""

import decimal
import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import SourceConfig
from pipeline.data import validation
from pipeline.data.formats import sql_changes
from pipeline.data.formats.sql_changes import FollowedTable, Mark
from pipeline.data.formats.sql_values import plain
from pipeline.data.formats.text_files import STRING
from pipeline.data.sources import Source
from pipeline.errors import SchemaError
from pipeline.schema import InvalidRow
from pipeline.text import counted

SHOWN = 5
"""Number of ids that a message names."""
_EMPTY = pa.table({"query_id": pa.array([], STRING), "doc_id": pa.array([], STRING), "grade": pa.array([], pa.int64())})

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Watermark:
    """The state of a table when it was read."""

    source: str
    """A digest of what is read: address, table, columns, and how deletions are found."""
    documents: Mark | None
    """The largest value of the watermark column; None where no row has one."""
    deletions: Mark | None = None
    """The largest watermark in the table of deletions; None where there is no such table or it is empty."""

    def to_json(self) -> dict[str, Any]:
        marks = {"documents": self.documents, "deletions": self.deletions}
        return {"source": self.source} | {
            name: None if mark is None else [mark.kind, mark.text] for name, mark in marks.items()
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Watermark":
        marks = {name: Mark(*fields[name]) if fields[name] else None for name in ("documents", "deletions")}
        return cls(source=fields["source"], **marks)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldDocuments:
    """The documents of the release that is brought up to date."""

    watermark: Watermark
    schema: pa.Schema
    ids: Iterable[list[str]]
    """The ids of all documents, a part at a time; may be iterated once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """The documents of a table that are new or changed since a release, and the release's ids that are gone."""

    documents: "Spool"
    gone: frozenset[str]
    watermark: Watermark
    complete: bool
    """Whether `documents` are all there are, so that nothing of the release stays."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason → rows that cannot be used and were left out."""


class Spool:
    """Tables of documents on disk, whose columns get one type each when all are known.

    The rule is that of `formats.sql_values`, by the types of the tables in the place of values.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._files = folder, list[Path]()
        self._types: dict[str, set[pa.DataType]] = {}
        self.rows = 0

    def add(self, table: pa.Table) -> None:
        """Writes one table of documents; all have the same columns."""
        for column in table.schema:
            kinds = self._types.setdefault(column.name, set())
            if table[column.name].null_count < table.num_rows:
                kinds.add(column.type)
        path = self._folder / f"{len(self._files):06d}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        self._files.append(path)
        self.rows += table.num_rows

    def schema(self) -> pa.Schema:
        """One type for each column."""
        return pa.schema([(name, _common(kinds)) for name, kinds in self._types.items()])

    def silent(self) -> frozenset[str]:
        """The columns without a single value, which fit any type."""
        return frozenset(name for name, kinds in self._types.items() if not kinds)

    def tables(self, schema: pa.Schema | None = None) -> Iterator[pa.Table]:
        """The tables that were added, with this schema; with `self.schema()` where None."""
        schema = schema or self.schema()
        for path in self._files:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
            yield pa.table({column.name: _cast(table[column.name], column.type) for column in schema}, schema=schema)


def read(
    source: SourceConfig, root: Path, held: HeldDocuments | None, faulty_rows: Literal["error", "drop"], folder: Path
) -> Changes:
    """Reads what changed since the watermark of the held documents, or all where there are none.

    Memory holds one part of the rows, and eight bytes for each id that is read.

    Args:
        root: the folder that a relative SQLite file is below.
        held: the documents of the release that is brought up to date; None reads all.
        faulty_rows: `drop` leaves a row out that cannot be used, and its id counts as gone; `error` refuses it.
        folder: an empty folder for the documents that are read; it must stay until they are used.

    Raises:
        ConfigError, MissingError, SchemaError, UnavailableError: see `sql_changes.open_table`; rows that cannot be
            used, or two with one id, are named.
    """
    with sql_changes.open_table(source, root) as table:
        mark = Watermark(source=_digest(source, table), documents=table.newest(), deletions=table.newest_deletion())
        if unmarked := table.without_mark():
            rows = counted(unmarked, "row", "have")
            log.warning("%s: %s no %s, so all such rows are read every time", table.shown, rows, source.watermark)
        if held and (reason := _unusable(held.watermark, mark, table, source)):
            log.info("%s: %s, so all rows are read", table.shown, reason)
            held = None
        spool, gone, dropped = _read(table, held.watermark if held else None, faulty_rows, folder)
        if held and (other := _other_types(spool, held.schema)):
            log.info("%s: column %s holds another kind of value than before, so all rows are read", table.shown, other)
            held = None
            spool, gone, dropped = _read(table, None, faulty_rows, folder)
        if held:
            for ids in table.deleted(
                held.watermark.documents if source.deletions == "flag" else held.watermark.deletions
            ):
                gone.update(ids)
            if source.deletions == "scan":
                gone |= _gone_by_scan(table, held)
        return Changes(
            documents=spool, gone=frozenset(gone), watermark=mark, complete=held is None, dropped=dict(dropped)
        )


def _digest(source: SourceConfig, table: FollowedTable) -> str:
    keys = [table.shown, source.watermark, source.deletions, source.deleted, sorted(table.columns.items())]
    return hashlib.blake2b(repr(keys).encode(), digest_size=16).hexdigest()


def _unusable(last: Watermark, now: Watermark, table: FollowedTable, source: SourceConfig) -> str:
    """The reason why nothing can be told from the last watermark; empty where it fits."""
    if last.source != now.source:
        return "the source or its columns are others than in the release"
    if last.documents is None or now.documents is None:
        return "no row had a watermark"
    if last.documents.kind != now.documents.kind:
        return f"{source.watermark} was a {last.documents.kind} and is a {now.documents.kind}"
    if not table.reaches(last.documents):
        return (
            f"no row has a {source.watermark} of {last.documents.text} or above any more: the newest rows are gone, or "
            "a clock or backup went back"
        )
    return _unusable_deletions(last.deletions, now.deletions, table, source)


def _unusable_deletions(last: Mark | None, now: Mark | None, table: FollowedTable, source: SourceConfig) -> str:
    """The reason why the table of deletions does not tell all that is gone since a mark; empty where it does."""
    if last is None:
        return ""
    if now is None or now.kind != last.kind or not table.reaches_deletion(last):
        return (
            f"no row of {source.deleted} reaches the {source.watermark} {last.text} any more, so it may lack "
            "deletions, or a clock went back there"
        )
    return ""


def _read(
    table: FollowedTable, since: Watermark | None, faulty_rows: Literal["error", "drop"], folder: Path
) -> tuple[Spool, set[str], Counter[str]]:
    """The usable rows, the ids of those that are not, and their number by reason."""
    try:
        return _read_once(table, since, faulty_rows, folder / "typed", raw=False)
    except (ValueError, TypeError, decimal.DecimalException):
        # SQLite keeps anything in a column of dates or numbers; what does not fit is read as it is stored.
        return _read_once(table, since, faulty_rows, folder / "raw", raw=True)


def _read_once(
    table: FollowedTable, since: Watermark | None, faulty_rows: Literal["error", "drop"], folder: Path, *, raw: bool
) -> tuple[Spool, set[str], Counter[str]]:
    folder = folder / ("changed" if since else "all")
    folder.mkdir(parents=True)
    spool, unusable, dropped = Spool(folder), set[str](), Counter[str]()
    marks: list[npt.NDArray[np.uint64]] = []
    for rows, faults in table.rows(since.documents if since else None, raw=raw):
        marks.append(_id_marks(rows["doc_id"].to_pylist()))
        usable = _usable(rows, faults, table.shown, faulty_rows, dropped)
        if usable.num_rows < rows.num_rows:
            unusable |= set(rows["doc_id"].to_pylist()) - set(usable["doc_id"].to_pylist())
        spool.add(usable)
    _refuse_repeated(table, np.concatenate([np.zeros(0, np.uint64), *marks]))
    return spool, unusable, dropped


def _usable(
    rows: pa.Table,
    faults: Sequence[InvalidRow],
    shown: str,
    faulty_rows: Literal["error", "drop"],
    dropped: Counter[str],
) -> pa.Table:
    queries = _EMPTY.select(["query_id"]).append_column("text", pa.array([], STRING))
    validated = validation.sift(Source(shown, rows, queries, _EMPTY, "", "sql", tuple(faults)))
    if faulty_rows == "error":
        validation.refuse(validated.findings, shown, validation.MEND)
    dropped.update(validated.counts().get("documents", {}))
    return validated.documents


def _id_marks(ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Eight bytes that stand for each id, (ids,)."""
    return np.frombuffer(b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids), np.uint64)


def _refuse_repeated(table: FollowedTable, marks: npt.NDArray[np.uint64]) -> None:
    """Raises SchemaError where an id stands twice, as changes are told apart by their ids."""
    values, counts = np.unique(marks, return_counts=True)
    if not (counts > 1).any():
        return
    suspected = set(values[counts > 1].tolist())
    seen: Counter[str] = Counter()
    for ids in table.ids():
        seen.update(name for name, mark in zip(ids, _id_marks(ids).tolist(), strict=True) if mark in suspected)
    if repeated := [name for name, count in seen.items() if count > 1]:
        named = ", ".join(f"'{name}'" for name in repeated[:SHOWN])
        raise SchemaError(
            f"{table.shown}: {len(repeated):,} ids stand in several rows ({named}); with a watermark each id needs one"
        )


def _gone_by_scan(table: FollowedTable, held: HeldDocuments) -> set[str]:
    """The held ids that no row of the table has any more."""
    there = np.unique(np.concatenate([np.zeros(0, np.uint64), *(_id_marks(ids) for ids in table.ids())]))
    gone: set[str] = set()
    for ids in held.ids:
        marks = _id_marks(ids)
        nearest = np.minimum(np.searchsorted(there, marks), max(len(there) - 1, 0))
        missing = there[nearest] != marks if len(there) else np.ones(len(marks), bool)
        gone.update(name for name, absent in zip(ids, missing.tolist(), strict=True) if absent)
    return gone


def _other_types(spool: Spool, schema: pa.Schema) -> str:
    """A column whose values are of another type than the held documents have; empty where all fit."""
    types, silent, held = spool.schema(), spool.silent(), dict(zip(schema.names, schema.types, strict=True))
    return next(
        (
            name
            for name, kind in zip(types.names, types.types, strict=True)
            if name not in held or (name not in silent and _common({kind, held[name]}) != held[name])
        ),
        "",
    )


def _common(types: set[pa.DataType]) -> pa.DataType:
    """The one type that values of these types get."""
    if not types:
        return STRING
    if len(types) == 1:
        return next(iter(types))
    if types == {pa.int64(), pa.float64()}:
        return pa.float64()
    decimals = {kind for kind in types if pa.types.is_decimal(kind)}
    if decimals and types <= {*decimals, pa.int64()}:
        return pa.decimal128(38, max(kind.scale for kind in decimals))
    return STRING


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    if column.null_count == len(column):
        return pa.chunked_array([pa.nulls(len(column), kind)])
    if pa.types.is_floating(kind):
        return pc.cast(column, kind, safe=False)
    if pa.types.is_decimal(kind):
        return pc.cast(column, kind)
    return pa.chunked_array([pa.array([None if value is None else plain(value) for value in column.to_pylist()], kind)])
