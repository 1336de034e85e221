"""Documents out of a database: one table, read as a stream, by any SQLAlchemy URL.

    sqlite:///shop.db                                     the table `documents`
    postgresql+psycopg://user@host/shop?table=articles    another table or view

The table has columns doc_id, title and text; others are kept.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, NoSuchTableError, SQLAlchemyError

from pipeline.data.formats import tables
from pipeline.data.formats.tables import Tables
from pipeline.data.formats.text_files import STRING
from pipeline.errors import ConfigError, MissingError, SchemaError
from pipeline.schema import InvalidRow

ROWS_AT_ONCE = 10_000


def locate(url: str, root: Path) -> tuple[sa.URL, str]:
    """The database and the name of the table; an SQLite file is looked for below `root`.

    Raises:
        ConfigError: not a SQLAlchemy URL.
        MissingError: no such SQLite file.
    """
    try:
        found = sa.make_url(url)
    except (ArgumentError, ValueError) as error:
        shown = re.sub(r"//.*@", "//***@", url)
        raise ConfigError(f"{shown}: not a SQLAlchemy URL; write it as sqlite:///shop.db?table=documents") from error
    name = found.query.get("table", "documents")
    found = found.difference_update_query(["table"])
    if found.get_backend_name() == "sqlite" and found.database and found.database != ":memory:":
        file = root / found.database
        if not file.is_file():
            raise MissingError(f"{file}: no such SQLite file")
        found = found.set(database=str(file))
    return found, str(name)


def read(url: str, root: Path) -> Tables:
    """All documents of the table in order of their ids, without queries or judgments. NULL is an empty text.

    Raises:
        ConfigError: not a URL that SQLAlchemy understands, or its driver is not installed.
        MissingError: no such file or table.
        SchemaError: a column missing, or the database fails; passwords are left out of the message.
    """
    address, name = locate(url, root)
    shown = f"{address.render_as_string(hide_password=True)}, table {name}"
    try:
        engine = sa.create_engine(address)
    except (NoSuchModuleError, ArgumentError, ImportError) as error:
        raise ConfigError(f"{shown}: no driver for this database ({error}); install it, see the extras") from error
    try:
        with engine.connect().execution_options(stream_results=True, max_row_buffer=ROWS_AT_ONCE) as connection:
            table = sa.Table(name, sa.MetaData(), autoload_with=connection)
            missing = [column for column in ("doc_id", "title", "text") if column not in table.c]
            if missing:
                raise SchemaError(
                    f"{shown}: has no column {', '.join(missing)}; it has {list(table.c.keys())}. Make a view that "
                    "names them so, and give it as ?table="
                )
            result = connection.execute(sa.select(table).order_by(table.c.doc_id)).mappings()
            return _collect(result.partitions(ROWS_AT_ONCE), list(table.c.keys()), shown)
    except NoSuchTableError as error:
        raise MissingError(f"{shown}: no such table") from error
    except SQLAlchemyError as error:
        reason = str(error).split("\n")[0]
        raise SchemaError(f"{shown}: cannot be read ({reason})") from error
    finally:
        engine.dispose()


def _collect(parts: Iterator[Any], columns: list[str], shown: str) -> Tables:
    found: list[pa.Table] = []
    faults: list[InvalidRow] = []
    before = 0
    for rows in parts:
        table, more = _table(rows, columns, shown)
        faults += [InvalidRow(fault.table, before + (fault.row or 0), fault.reason) for fault in more]
        found.append(table)
        before += table.num_rows
    if not found:
        return Tables()
    return Tables(documents=pa.concat_tables(found, promote_options="permissive"), faults=tuple(faults))


def _table(rows: list[Mapping[str, Any]], columns: list[str], shown: str) -> tuple[pa.Table, list[InvalidRow]]:
    arrays: dict[str, pa.Array] = {}
    faults: list[InvalidRow] = []
    for name in columns:
        values = [row[name] for row in rows]
        if name in ("doc_id", "title", "text"):
            texts = ["" if value is None else str(value) for value in values]
            arrays[name], more = tables.strings(texts, "documents", name)
            faults += more
        else:
            try:
                arrays[name] = pa.array(values)
            except (pa.ArrowException, TypeError, UnicodeError):
                arrays[name] = pa.array([None if value is None else repr(value) for value in values], STRING)
    if not columns or not rows:
        raise SchemaError(f"{shown}: an empty part of a result")
    return pa.table(arrays), faults
