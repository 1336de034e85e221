"""The rows of a database's table that changed since a watermark, a part at a time in memory.

    newest value of the watermark ─► rows at or above the last one ─► rows that are gone

The newest value is read first, so a row that is written during the reading is read now, or next time, or both.
Rows at the last value itself are read again, as more of them may have come. This needs no snapshot of the database.
"""

import datetime
import decimal
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.exc import NoSuchTableError

from pipeline.config import SourceConfig
from pipeline.data.formats import column_map, tables
from pipeline.data.formats.sql import OWN_COLUMNS, ROWS_AT_ONCE, flag_of, reading, refuse_absent
from pipeline.data.formats.sql_address import locate, shown_as
from pipeline.data.formats.sql_values import is_set, plain, texts_of, typed
from pipeline.errors import ConfigError, MissingError, SchemaError
from pipeline.schema import InvalidRow

FUTURE = datetime.timedelta(days=1)
"""Largest distance that a watermark may lie ahead of this machine's clock, whatever the time zones."""

_AT_ONCE = 500
"""Ids in one query."""
_EXACT = decimal.Context(prec=200_000)
"""Arithmetic that rounds no decimal of a database; PostgreSQL's have up to 147,455 digits."""
log = logging.getLogger(__name__)

_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}")
"""A whole number as an id is written."""
Kind = str
_KINDS: Mapping[type, Kind] = {
    int: "number",
    float: "number",
    decimal.Decimal: "decimal",
    str: "text",
    datetime.datetime: "moment",
    datetime.date: "date",
    bytes: "bytes",
}


@dataclass(frozen=True, slots=True)
class Mark:
    """One value of a watermark column, as JSON can hold it."""

    kind: Kind
    """number, decimal, text, moment, instant (with a time zone), date or bytes."""
    text: str

    @classmethod
    def of(cls, value: Any, where: str) -> "Mark":
        """The mark of a column's value.

        Raises:
            SchemaError: the value is of a kind that has no order to follow.
        """
        kind = _KINDS.get(type(value))
        if kind is None:
            raise SchemaError(
                f"{where}: holds {type(value).__name__} values ({str(value)[:40]}); a watermark is a number, a time or "
                "a text that grows whenever a row is written"
            )
        if isinstance(value, datetime.datetime):
            return cls("moment" if value.tzinfo is None else "instant", value.isoformat())
        return cls(kind, value.hex() if isinstance(value, bytes) else plain(value))

    def value(self, back: float = 0.0) -> Any:
        """The value to compare the column with: the mark exactly, or `back` seconds or units before it.

        Raises:
            ConfigError: there is nothing earlier than such a value, or `back` is longer than time is.
        """
        try:
            return self._earlier(back)
        except OverflowError as error:
            raise ConfigError(
                f"overlap is {back:g} seconds, which reach further back than times do; give fewer, or leave overlap out"
            ) from error

    def _earlier(self, back: float) -> Any:
        if self.kind == "number":
            # A float does not hold every whole number, such as a time in nanoseconds.
            is_whole = self.text.lstrip("-").isdigit()
            return int(self.text) - math.ceil(back) if is_whole else float(self.text) - back
        if self.kind == "decimal":
            return _EXACT.subtract(decimal.Decimal(self.text), decimal.Decimal(repr(back)))
        earlier = datetime.timedelta(seconds=back)
        if self.kind == "date":
            return datetime.date.fromisoformat(self.text) - datetime.timedelta(days=math.ceil(back / 86_400))
        if self.kind in ("moment", "instant"):
            return datetime.datetime.fromisoformat(self.text) - earlier
        if not back:
            return bytes.fromhex(self.text) if self.kind == "bytes" else self.text
        if (moment := self.moment()) is not None:
            text = (moment - earlier).isoformat(sep="T" if "T" in self.text else " ")
            return text[: len(self.text)]  # As texts compare: of two that begin alike, the shorter is the smaller.
        raise ConfigError(
            f"overlap is {back:g}, and the watermark '{self.text}' is neither a number nor a time; leave overlap out"
        )

    def moment(self) -> datetime.datetime | None:
        """The time that this mark is; None where it is none."""
        try:
            return datetime.datetime.fromisoformat(self.text) if "-" in self.text else None
        except ValueError:
            return None


class FollowedTable:
    """A table whose watermark column says which rows were written since."""

    def __init__(self, connection: sa.Connection, config: SourceConfig, name: str, shown: str) -> None:
        """
        Raises:
            SchemaError: a column that the recipe names is missing.
        """
        self.shown, self._connection, self._config = shown, connection, config
        self._table = sa.Table(name, sa.MetaData(), autoload_with=connection)
        self._is_sqlite = connection.dialect.name == "sqlite"
        columns = self._table.c.keys()
        refuse_absent(columns, config, shown)
        self._flag = flag_of(config)
        self.columns = dict(config.columns) or {
            **{own: own for own in OWN_COLUMNS},
            **{column: column for column in columns if column != self._flag},
        }
        """Our name of each column that is kept → its name in the table."""
        self._id = self._table.c[self.columns["doc_id"]]
        self._mark = self._untyped(self._table.c[config.watermark])

    def newest(self) -> Mark | None:
        """The largest value of the watermark; None where there is none.

        Raises:
            SchemaError: the column holds values of several kinds, or one that lies in the future.
        """
        return self._newest(self._table, self._mark)

    def newest_deletion(self) -> Mark | None:
        """The largest watermark in the table of deletions; None where there is no such table, or no value in it.

        Raises:
            SchemaError: see `newest`.
        """
        if self._config.deletions != "table":
            return None
        table = self._tombstones()
        return self._newest(table, self._untyped(table.c[self._config.watermark]))

    def reaches(self, mark: Mark) -> bool:
        """Whether any row is at or above a mark that a row had once."""
        return self._first(sa.select(sa.literal(1)).where(self._mark >= mark.value()).limit(1)) is not None

    def reaches_deletion(self, mark: Mark) -> bool:
        """Whether any row of the table of deletions is at or above a mark that one had once."""
        column = self._untyped(self._tombstones().c[self._config.watermark])
        return self._first(sa.select(sa.literal(1)).where(column >= mark.value()).limit(1)) is not None

    def rows(self, since: Mark | None, *, raw: bool = False) -> Iterator[tuple[pa.Table, tuple[InvalidRow, ...]]]:
        """The rows at or above a mark, or all, in order of their ids: documents of ROWS_AT_ONCE rows, and their faults.

        Rows without a watermark are among them each time. Rows that are marked as deleted are not.

        Args:
            raw: values as the driver gives them, without the type that the table declares; but for truth values.
        """
        chosen = {column: self._typed(column, raw=raw) for column in self.columns.values()}
        chosen |= {self._flag: self._table.c[self._flag]} if self._flag else {}
        query = sa.select(*(value.label(column) for column, value in chosen.items())).order_by(self._id)
        for part in self._parts(query.where(*self._after(since))):
            kept = [row for row in part if not (self._flag and is_set(row[self._flag]))]
            if kept:
                yield self._documents(kept)

    def deleted(self, since: Mark | None) -> Iterator[list[str]]:
        """Ids of the rows that the flag, or the table of deletions, says are gone since a mark.

        An id of the table of deletions that stands in the table itself came back, and is not gone.
        """
        if self._config.deletions == "flag":
            query = sa.select(self._id.label("doc_id"), self._table.c[self._flag].label("flag"))
            for part in self._parts(query.where(*self._after(since))):
                yield self._ids([row["doc_id"] for row in part if is_set(row["flag"])])
        elif self._config.deletions == "table":
            table = self._tombstones()
            mark = self._untyped(table.c[self._config.watermark])
            query = sa.select(table.c[self.columns["doc_id"]])
            after = [] if since is None else [sa.or_(mark >= since.value(self._config.overlap), mark.is_(None))]
            ids = self._connection.execute(query.where(*after)).scalars().all()
            for start in range(0, len(ids), _AT_ONCE):
                some = ids[start : start + _AT_ONCE]
                there = sa.select(self._id).where(self._is_one_of(some))
                back = set(self._ids(self._connection.execute(there).scalars().all()))
                yield [name for name in self._ids(some) if name not in back]

    def _is_one_of(self, values: Sequence[Any]) -> Any:
        """The condition that a row has one of these ids, which may be texts here and numbers in the table, or so."""
        names = self._ids(values)
        numbers = [int(name) for name in names if _WHOLE.fullmatch(name) and abs(int(name)) < 2**63]
        if self._is_sqlite:  # Any column may hold either.
            return self._untyped(self._id).in_([*names, *numbers])
        if isinstance(self._id.type, sa.Integer | sa.Numeric):
            return self._id.in_(numbers)
        return self._id.in_(names if isinstance(self._id.type, sa.String) else values)

    def ids(self) -> Iterator[list[str]]:
        """The ids of all rows."""
        for part in self._parts(sa.select(self._id.label("doc_id"))):
            yield self._ids([row["doc_id"] for row in part])

    def without_mark(self) -> int:
        """The number of rows whose watermark is NULL."""
        return int(self._first(sa.select(sa.func.count()).select_from(self._table).where(self._mark.is_(None))) or 0)

    def _documents(self, rows: Sequence[Mapping[str, Any]]) -> tuple[pa.Table, tuple[InvalidRow, ...]]:
        documents: dict[str, Any] = {}
        faults: list[InvalidRow] = []
        for own in OWN_COLUMNS:
            values = [row[self.columns[own]] for row in rows] if own in self.columns else [""] * len(rows)
            documents[own], more = tables.strings(texts_of(values, own, self.shown), "documents", own)
            faults += more
        for name, column in self.columns.items():
            if name not in OWN_COLUMNS:
                documents[name] = typed([row[column] for row in rows])
        return pa.table(documents), tuple(faults)

    def _ids(self, values: Sequence[Any]) -> list[str]:
        return texts_of(values, "doc_id", self.shown)

    def _newest(self, table: sa.Table, mark: Any) -> Mark | None:
        value = self._first(sa.select(sa.func.max(mark)).select_from(table))
        where = f"{self.shown}, column {self._config.watermark}"
        if value is None:
            return None
        if self._is_sqlite:
            kinds = set(
                self._connection.execute(sa.select(sa.func.typeof(mark)).select_from(table).distinct()).scalars()
            )
            if len(kinds := {"number" if kind in ("integer", "real") else kind for kind in kinds - {"null"}}) > 1:
                raise SchemaError(
                    f"{where}: holds values of several kinds ({', '.join(sorted(kinds))}); store one kind"
                )
        newest = Mark.of(value, where)
        moment = newest.moment()
        if moment is not None and moment > (now := datetime.datetime.now(moment.tzinfo)) + FUTURE:
            raise SchemaError(
                f"{where}: its newest value {newest.text} lies in the future, so rows that are written from now on "
                "would not be read; correct that row, or the clock that wrote it, or that of this machine, which says "
                f"{now.isoformat(sep=' ', timespec='seconds')}"
            )
        return newest

    def _after(self, since: Mark | None) -> list[Any]:
        if since is None:
            return []
        return [sa.or_(self._mark >= since.value(self._config.overlap), self._mark.is_(None))]

    def _tombstones(self) -> sa.Table:
        try:
            table = sa.Table(self._config.deleted, sa.MetaData(), autoload_with=self._connection)
        except NoSuchTableError as error:
            raise MissingError(f"{self.shown}: no table {self._config.deleted}, which `deleted` names") from error
        needed = (self.columns["doc_id"], self._config.watermark)
        if missing := [column for column in needed if column not in table.c]:
            raise SchemaError(
                f"{self.shown}: the table {self._config.deleted}, which `deleted` names, has no column "
                f"{', '.join(missing)}; it needs the id and the watermark by the names that the documents' table has"
            )
        return table

    def _typed(self, column: str, *, raw: bool) -> Any:
        value = self._table.c[column]
        return self._untyped(value) if raw and not isinstance(value.type, sa.Boolean) else value

    def _untyped(self, column: Any) -> Any:
        """A column without its declared type in SQLite, which compares times as the texts that were written."""
        return sa.type_coerce(column, sa.types.NullType()) if self._is_sqlite else column

    def _first(self, query: Any) -> Any:
        return self._connection.execute(query).scalar()

    def _parts(self, query: Any) -> Iterator[Sequence[Any]]:
        with self._connection.execute(query) as result:  # Else a driver warns of a cursor that is left open.
            yield from result.mappings().partitions(ROWS_AT_ONCE)


@contextmanager
def open_table(config: SourceConfig, root: Path) -> Iterator[FollowedTable]:
    """The table of a source with a watermark, over one connection.

    Raises:
        ConfigError: the source is no table of a database with documents alone, or its driver is not installed.
        MissingError: no such file or table.
        SchemaError: a column that the recipe names is missing.
        UnavailableError: the database cannot be reached, or was lost on the way.
    """
    if "://" not in config.path:
        raise ConfigError(f"{config.path}: a watermark needs the table of a database; leave it out for files")
    address, name = locate(config.path, root)
    shown = shown_as(address, f"table {name}")
    unusable = sorted(set(config.columns) & set(column_map.roles(config.columns)) - set(OWN_COLUMNS))
    if unusable or (config.columns and "doc_id" not in config.columns):
        raise ConfigError(
            f"{shown}: a source with a watermark holds documents alone, each with an id: map doc_id"
            + (f", and read {', '.join(unusable)} from a source of its own" if unusable else "")
        )
    with reading(address, f"table {name}") as engine:
        options = {"stream_results": True, "max_row_buffer": ROWS_AT_ONCE}
        with engine.connect().execution_options(**options) as connection:
            yield FollowedTable(connection, config, name, shown)
