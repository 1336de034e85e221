"""Readers of separated values with and without a row of names: whole tables as text, or their first rows."""

import io
from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.data.formats.separated_reader import SeparatedReader
from pipeline.data.formats.text_files import STRING, say_empty
from pipeline.errors import MissingError, SchemaError
from pipeline.regular_files import refuse_special
from pipeline.text import other_format, wide_encoding, wrong_byte


def header(path: Path, delimiter: str, encoding: str = "utf-8", *, quoted: bool = True) -> list[str]:
    """The fields of the first row of a separated file; empty for an empty file. See `first_rows` for the errors."""
    rows = first_rows(path, delimiter, 1, encoding, quoted=quoted)
    return rows[0] if rows else []


def first_rows(
    path: Path, delimiter: str, count: int, encoding: str = "utf-8", *, quoted: bool = True
) -> list[list[str]]:
    """The fields of the first rows of a separated file, fewer where it has fewer or they are long.

    Raises:
        MissingError: no such file.
        SchemaError: the first row cannot be parsed; a byte that is not of the encoding.
    """
    if not _size(path):
        return []
    _refuse_other_formats(path)
    return SeparatedReader(path, delimiter, quoted, encoding).first_rows(count)


def titled(
    path: Path, wanted: Sequence[str], *, delimiter: str = ",", quoted: bool = True, encoding: str = "utf-8"
) -> pa.Table:
    """A separated file whose first row names its columns, each as text.

    Args:
        wanted: columns that must be there; others are kept too.
        quoted: fields may stand in double quotes, which are doubled inside, and span lines.

    Raises:
        MissingError: no such file.
        SchemaError: a column missing or named twice, a row of another width, a byte that is not of the encoding.
    """
    rows = _rows(path, delimiter, quoted, encoding)
    if not rows.num_rows:
        rows = pa.table({})
    names = [column[0].as_py() for column in rows.columns]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise SchemaError(f"{path}: has no column {', '.join(map(repr, missing))}; its first line has {names[:50]}")
    twice = next((name for name in wanted if names.count(name) > 1), None)
    if twice is not None:
        raise SchemaError(f"{path}: two columns are called {twice!r}; rename one of them in the first line")
    if rows.num_rows == 1:
        say_empty(path, "below the names of its columns")
    return rows.slice(1).rename_columns(names)


def untitled(
    path: Path,
    names: Sequence[str],
    *,
    delimiter: str = "\t",
    quoted: bool = False,
    encoding: str = "utf-8",
    heads: Collection[str] = (),
) -> pa.Table:
    """A separated file without names for its columns, each as text, called `names`; see `titled`.

    Args:
        heads: a first row whose first field is one of these is a row of names after all, and is left out.
    """
    rows = _rows(path, delimiter, quoted, encoding)
    if not rows.num_rows:
        say_empty(path)
        return pa.table({name: pa.array([], STRING) for name in names})
    if rows.num_columns != len(names):
        raise SchemaError(
            f"{path}: cannot be read as columns {', '.join(names)} (Expected {len(names)} columns, got "
            f"{rows.num_columns} in the first row); look for a row with another number of fields"
        )
    return rows.slice(int(rows.column(0)[0].as_py() in heads)).rename_columns(list(names))


def _refuse_other_formats(path: Path) -> None:
    """Raises SchemaError for another format, UTF-16 and UTF-32.

    Without a byte-order mark, English text in UTF-16 is valid UTF-8.
    """
    with path.open("rb") as file:
        head = file.read(1024)
    if wide_encoding(head) or other_format(path, head):
        raise wrong_byte(path, 0, "")


def _rows(path: Path, delimiter: str, quoted: bool, encoding: str) -> pa.Table:
    """All rows of a separated file, the first included, as columns of text called f0, f1, …"""
    if not _size(path):
        return pa.table({"f0": pa.array([], STRING)})
    _refuse_other_formats(path)
    return SeparatedReader(path, delimiter, quoted, encoding).table()


def _size(path: Path) -> int:
    """The bytes of a file that can be read; raises MissingError or SchemaError for any other path."""
    refuse_special(path)
    try:
        with path.open("rb") as file:
            return file.seek(0, io.SEEK_END)
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file") from error
    except OSError as error:
        raise SchemaError(f"{path}: cannot be read ({error})") from error
