"""Reads Parquet files: tables that this project wrote, and files of others with the columns that a source needs.

Parquet does not promise that its strings are UTF-8, so each text column is checked before anything reads its values.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.data.formats import nested
from pipeline.data.formats.tables import is_text
from pipeline.data.formats.text_files import STRING, say_empty
from pipeline.errors import MissingError, SchemaError

SAMPLE_BYTES = 1 << 16
"""Size in bytes of one read of a column whose first value alone is needed."""


def read(file: Path, kind: str) -> pa.Table:
    """A Parquet table that this project wrote, with its texts as Arrow's large strings.

    Args:
        file: the Parquet file.
        kind: the table's name in `schema.TABLES`, such as documents or queries, which says what columns it must have.

    Raises:
        MissingError: no such file.
        SchemaError: not Parquet, a column missing or of another type, a null in a required column, text that is not
            UTF-8.
    """
    table = schema.read(file, kind)
    if not table.num_rows:
        say_empty(file)
    return _with_large_strings(table)


def read_foreign(file: Path, wanted: Sequence[str], *, wanted_only: bool = False) -> pa.Table:
    """A Parquet table that somebody else wrote, with its texts as Arrow's large strings.

    Args:
        file: the Parquet file.
        wanted: names of columns, or paths to fields of structs, that it must have.
        wanted_only: whether the other columns are left unread, as vectors among them may be large; else they are kept.

    Raises:
        MissingError: no such file.
        SchemaError: not Parquet, a column missing, two columns of one name, text that is not UTF-8.
    """
    content = _schema(file)
    names, known = content.names, nested.flat(nested.empty_row(content))
    missing = [name for name in wanted if name not in known]
    if missing:
        raise SchemaError(f"{file}: has no column {', '.join(map(repr, missing))}; it has {names}")
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise SchemaError(f"{file}: two columns are called {repeated!r}; write the file with one of them renamed")
    with _readable_errors(file):
        table = nested.with_fields(
            pq.read_table(file, columns=_holders(wanted, names) if wanted_only else None), wanted
        )
    if not table.num_rows:
        say_empty(file)
    table = _without_dictionaries(table)
    schema.refuse_invalid_text(table, file)
    return _with_large_strings(table)


def _holders(wanted: Sequence[str], names: Sequence[str]) -> list[str] | None:
    """The columns of a file that hold the wanted ones, in its order; None for all of them.

    Of a column whose own name has a dot, Arrow would look for a field of a struct.
    """
    needed = {holder for path in wanted for holder in (path, *nested.parents(path))}
    holders = [name for name in names if name in needed]
    return None if any("." in name for name in holders) else holders


def column_names(file: Path) -> list[str]:
    """The names of a Parquet file's columns, and the paths to the fields of its structs.

    Raises:
        MissingError: no such file.
        SchemaError: not Parquet.
    """
    return list(nested.flat(nested.empty_row(_schema(file))))


def first_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yields a row of a Parquet file's columns without values, and then its first row if it has one.

    A value that cannot be shown, such as text that is not UTF-8, is left out. Little more than the first page of each
    column is read, however large the file is.

    Raises:
        MissingError: no such file.
        SchemaError: not Parquet.
    """
    with _readable_errors(file), pq.ParquetFile(file, pre_buffer=False, buffer_size=SAMPLE_BYTES) as content:
        yield nested.empty_row(content.schema_arrow)
        batch = next(content.iter_batches(batch_size=1), None)
        if batch is not None and batch.num_rows:
            yield {name: _shown_cell(column[0]) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _schema(file: Path) -> pa.Schema:
    with _readable_errors(file):
        return pq.read_schema(file)


def _shown_cell(cell: pa.Scalar) -> Any:
    """The value of a cell; None where it is null or has no value in Python."""
    try:
        return cell.as_py()
    except (pa.ArrowException, ValueError, OverflowError, LookupError):  # LookupError: an unknown time zone.
        return None


@contextmanager
def _readable_errors(file: Path) -> Iterator[None]:
    """Turns Arrow's errors about a Parquet file into one that names the file and what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingError(f"{file}: no such file") from error
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"{file}: not a readable Parquet file ({error}); fetch it again") from error


def _without_dictionaries(table: pa.Table) -> pa.Table:
    """The table with each dictionary-encoded column, as pandas writes categories, decoded to its values."""
    for number, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            table = table.set_column(number, column.name, table[number].cast(column.type.value_type))
    return table


def _with_large_strings(table: pa.Table) -> pa.Table:
    """The table with its texts as large strings."""
    for number, column in enumerate(table.schema):
        if is_text(column.type):
            table = table.set_column(number, column.name, table[number].cast(STRING))
    return table
