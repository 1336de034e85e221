"""Reads a table or query of a database: documents, or what the recipe's `columns` map.

`sql_address` has the form of an address. Without a map the table has columns doc_id, title and text; others are kept.
With `query` the rows of a query are read instead of a table. `sql_values` has the rule for the types of kept columns.
"""

import decimal
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    NoSuchTableError,
    OperationalError,
    SQLAlchemyError,
)

from pipeline.config import SourceConfig
from pipeline.data.formats import column_advice, column_map, sql_address, tables
from pipeline.data.formats import table as mapped
from pipeline.data.formats.sql_values import is_set, plain, texts_of, typed
from pipeline.data.formats.tables import FoundSource, Tables
from pipeline.errors import ConfigError, MissingError, SchemaError, UnavailableError
from pipeline.schema import InvalidRow
from pipeline.secrets import HIDDEN
from pipeline.text import address_part

ROWS_AT_ONCE = 10_000
"""Rows that are fetched from a database at once."""
_READ_ONLY = re.compile("read-?only", re.IGNORECASE)
"""Words by which SQLite and PostgreSQL refuse a statement that would write."""

OWN_COLUMNS = ("doc_id", "title", "text")
"""Columns of a table of documents that needs no map."""


def find(config: SourceConfig, root: Path) -> FoundSource | None:
    """The table that a URL names; it is read at once, as nothing else tells its content. See `tables.Format`."""
    if config.format != "sql" and "://" not in config.path:
        return None
    address, name = sql_address.locate(config.path, root)
    content = read(config, root)
    digest = _digest(content)
    shown = sql_address.readable(address)
    return FoundSource(name, shown, lambda: digest, lambda: content)


def other_tables(url: str, root: Path) -> list[str]:
    """The addresses of the other tables and views of a database; none where they cannot be listed."""
    address, name = sql_address.locate(url, root)
    engine = sa.create_engine(address)
    try:
        names = [other for other in _table_names(engine) if other != name]
    finally:
        engine.dispose()
    base = re.sub(r"([?&])table=[^&]*&?", r"\1", url).rstrip("?&")
    return [f"{base}{'&' if '?' in base else '?'}table={address_part(other)}" for other in names]


def samples_of(config: SourceConfig, root: Path) -> dict[str, str]:
    """Names of the columns of a table or query, each with its value in a row; empty values where there are no rows.

    Raises:
        ConfigError, MissingError, SchemaError, UnavailableError: see `read`.
    """
    address, name = sql_address.locate(config.path, root)
    if config.query:
        shown = sql_address.shown_as(address, "query")
        with reading(address, "query") as engine, engine.connect() as connection:
            rows = _answer(connection.execution_options(stream_results=True), config.query, shown)
            names, row = list(rows.keys()), rows.mappings().first()
            values = {} if row is None else dict(row)
            return {name: "" if values.get(name) is None else plain(values[name]) for name in names}
    with reading(address, f"table {name}") as engine, engine.connect() as connection:
        table = sa.Table(name, sa.MetaData(), autoload_with=connection)
        raw = [sa.type_coerce(column, sa.types.NullType()).label(column.name) for column in table.c]
        first = connection.execute(sa.select(*raw).limit(1)).mappings().first()
        values = {} if first is None else dict(first)
        return {
            str(column.name): "" if values.get(column.name) is None else plain(values[column.name]) for column in raw
        }


def read(config: SourceConfig, root: Path) -> Tables:
    """The rows of a table in the order of its doc_id, or of all columns without one; those of a query as it gives them.

    NULL is an empty text in columns of texts and ids.

    Raises:
        ConfigError: not a URL that SQLAlchemy understands, or its driver is not installed.
        MissingError: no such file or table.
        SchemaError: a column missing; passwords are left out of the message.
        UnavailableError: the database cannot be reached, or was lost on the way.
    """
    columns, shown = values_of(config, root)
    if config.columns:
        return _assembled(columns, config, shown)
    documents, faults = {}, []
    for column, values in columns.items():
        if column in OWN_COLUMNS:
            documents[column], more = tables.strings(texts_of(values, column, shown), "documents", column)
            faults += more
        else:
            documents[column] = typed(values)
    return Tables(documents=pa.table(documents), faults=tuple(faults))


def values_of(config: SourceConfig, root: Path) -> tuple[dict[str, list[Any]], str]:
    """The values of each column, under the keys of the map where there is one, and the address for messages.

    Rows flagged as deleted are left out; errors as of `read`.
    """
    address, name = sql_address.locate(config.path, root)
    source = "query" if config.query else f"table {name}"
    shown = sql_address.shown_as(address, source)
    with reading(address, source) as engine:
        try:
            columns = _rows(engine, name, config, shown, raw=False)
        except (ValueError, TypeError, decimal.DecimalException):
            # SQLite keeps anything in a column of dates or numbers; what does not fit is read as it is stored.
            columns = _rows(engine, name, config, shown, raw=True)
    return columns, shown


@contextmanager
def reading(address: sa.URL, source: str) -> Iterator[sa.Engine]:
    """An engine whose errors become ours; passwords are left out of the messages, also where a driver repeats them."""
    shown = sql_address.shown_as(address, source)
    try:
        engine = sa.create_engine(address)
    except (NoSuchModuleError, ArgumentError, ImportError) as error:
        raise sql_address.without_driver(address, error) from error
    try:
        yield engine
    except NoSuchTableError as error:
        known = _table_names(engine)
        there = f"; it has {', '.join(known[:20])}" if known else ""
        raise MissingError(f"{shown}: no such table{there}; name one as ?table=NAME in the address") from error
    except SQLAlchemyError as error:
        reason = str(error).split("\n")[0]
        for secret in sql_address.secrets_of(address):
            reason = reason.replace(secret, HIDDEN)
        if _is_lost(error, address):
            raise UnavailableError(f"{shown}: not reached, or lost on the way ({reason}); run again later") from error
        raise SchemaError(f"{shown}: cannot be read ({reason})") from error
    finally:
        engine.dispose()


def _is_lost(error: SQLAlchemyError, address: sa.URL) -> bool:
    """Whether the database itself failed, and not what it was given; SQLite says so by its message alone."""
    if not isinstance(error, DBAPIError):
        return False
    if address.get_backend_name() == "sqlite":
        return "locked" in str(error.orig) or "disk I/O" in str(error.orig)
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


def _table_names(engine: sa.Engine) -> list[str]:
    """The tables and views of a database, for a message; none where they cannot be listed."""
    try:
        inspector = sa.inspect(engine)
        return [*inspector.get_table_names(), *inspector.get_view_names()]
    except SQLAlchemyError:
        return []


def _rows(engine: sa.Engine, name: str, config: SourceConfig, shown: str, *, raw: bool) -> dict[str, list[Any]]:
    """The values of each column, under the keys of the map where there is one; rows flagged as deleted are left out.

    Args:
        raw: take values as the driver gives them and ignore the types that the table declares, except booleans.
    """
    wanted = dict(config.columns) or {column: column for column in OWN_COLUMNS}
    flag = flag_of(config)
    with engine.connect().execution_options(stream_results=True, max_row_buffer=ROWS_AT_ONCE) as connection:
        if config.query:
            result = _answer(connection, config.query, shown)
            names = list(result.keys())
        else:
            table = sa.Table(name, sa.MetaData(), autoload_with=connection)
            names = list(table.c.keys())
        refuse_absent(names, config, shown)
        if not config.columns:
            wanted |= {column: column for column in names if column != flag}
        if not config.query:
            ordered = [table.c[wanted[key]] for key in wanted if key == "doc_id"] or [
                table.c[column] for column in wanted.values()
            ]
            chosen = [
                sa.type_coerce(table.c[column], sa.types.NullType()).label(column)
                if raw and not isinstance(table.c[column].type, sa.Boolean)
                else table.c[column]
                for column in dict.fromkeys([*wanted.values(), *([flag] if flag else [])])
            ]
            result = connection.execute(sa.select(*chosen).order_by(*ordered))
        columns: dict[str, list[Any]] = {key: [] for key in wanted}
        for part in _parts(result):
            for key, column in wanted.items():
                columns[key].extend(row[column] for row in part if not (flag and is_set(row[flag])))
        return columns


def _answer(connection: sa.Connection, query: str, shown: str) -> sa.CursorResult[Any]:
    """The rows of a query, which reaches the database as it is written: no colon or per cent sign names a value.

    SQLite and PostgreSQL are told to write nothing: SQLite would drop a table at once, without a commit.

    Raises:
        ConfigError: the query writes.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("pragma query_only = on")
    elif connection.dialect.name == "postgresql":
        connection.execution_options(postgresql_readonly=True)
    advice = f"{shown}: its query gives no rows; write a SELECT"
    try:
        result = connection.exec_driver_sql(query, execution_options={"no_parameters": True})
    except DBAPIError as error:
        if _READ_ONLY.search(str(error.orig)):
            raise ConfigError(advice) from error
        raise
    if not result.returns_rows:
        raise ConfigError(advice)
    return result


def check(config: SourceConfig, root: Path) -> None:
    """Raises the errors by which `read` would fail at once, without reading more than a row."""
    address, name = sql_address.locate(config.path, root)
    shown = sql_address.shown_as(address, "query" if config.query else f"table {name}")
    refuse_absent(list(samples_of(config, root)), config, shown)


def flag_of(config: SourceConfig) -> str:
    """The column that marks a row as deleted; empty where the source has none."""
    return config.deleted if config.deletions == "flag" else ""


def refuse_absent(names: Sequence[str], config: SourceConfig, shown: str) -> None:
    """Raises SchemaError where a table lacks a column that its source needs; the message says what to change."""
    there = ", ".join(names)
    for key, column in (("watermark", config.watermark), ("deleted", flag_of(config))):
        if column and column not in names:
            raise SchemaError(
                f"{shown}: has no column {column}, which `{key}` of its source names; name one of {there}"
            )
    if config.columns:
        problem = column_advice.fault(config.columns, dict.fromkeys(names, ""))
        if problem:
            raise SchemaError(f"{shown}: {problem}")
    elif missing := [column for column in OWN_COLUMNS if column not in names]:
        advice = column_advice.fitting(dict.fromkeys(names, ""))
        raise SchemaError(f"{shown}: has no column {', '.join(missing)}; it has {there}. Map its columns: {advice}")


def _parts(result: Any) -> Iterator[Sequence[Mapping[str, Any]]]:
    yield from result.mappings().partitions(ROWS_AT_ONCE)


def _assembled(columns: Mapping[str, list[Any]], config: SourceConfig, shown: str) -> Tables:
    arrays = {}
    for key, values in columns.items():
        if key in column_map.roles(columns):
            arrays[key], faults = tables.strings(texts_of(values, key, shown), "documents", key)
            if faults:
                raise SchemaError(f"{shown}: {faults[0].where}, {faults[0].reason}")
        else:
            arrays[key] = typed(values)
    return mapped.assemble(pa.table(arrays), config, shown)


def _digest(content: Tables) -> str:
    digest = hashlib.blake2b(digest_size=16)
    faults: tuple[InvalidRow, ...] = content.faults
    digest.update(repr(faults).encode(errors="surrogatepass"))
    for rows in (content.documents, content.queries, content.judgments):
        digest.update(str(rows.schema).encode())
        for batch in rows.to_batches(max_chunksize=ROWS_AT_ONCE):
            for row in batch.to_pylist():
                digest.update(repr(row).encode(errors="surrogatepass"))
    return digest.hexdigest()
