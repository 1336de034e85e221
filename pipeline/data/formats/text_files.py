"""Text files as others publish them: lines, JSON lines, separated values; every error names the file and the place."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from pipeline.errors import MissingError, SchemaError
from pipeline.text import read_lines

BLOCK_BYTES = 1 << 26
"""Read at once; also the longest row of a separated file."""

STRING = pa.large_string()


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, object) of each line of a JSON lines file.

    Raises:
        MissingError: no such file.
        SchemaError: not UTF-8, or a line that is not a JSON object.
    """
    for number, line in read_lines(path):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SchemaError(
                f"{path}, line {number}: not JSON ({error}); each line must be one object, is the file cut off?"
            ) from error
        if not isinstance(found, dict):
            raise SchemaError(f"{path}, line {number}: a JSON {type(found).__name__}, not an object")
        yield number, found


def header(path: Path, delimiter: str, encoding: str = "utf-8") -> list[str]:
    """The names in the first line of a separated file; empty for an empty file."""
    first = next(read_lines(path, encoding), None)
    return next(csv.reader([first[1]], delimiter=delimiter)) if first else []


def titled(
    path: Path, wanted: Sequence[str], *, delimiter: str = ",", quoted: bool = True, encoding: str = "utf-8"
) -> pa.Table:
    """A separated file whose first line names its columns, each as text.

    Args:
        wanted: columns that must be there; others are kept too.
        quoted: fields may stand in double quotes, which are doubled inside, and span lines.

    Raises:
        MissingError: no such file.
        SchemaError: a column missing, a row of another width, a byte that is not of the encoding.
    """
    names = header(path, delimiter, encoding)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise SchemaError(f"{path}: has no column {', '.join(map(repr, missing))}; its first line has {names}")
    return untitled(path, names, delimiter=delimiter, quoted=quoted, encoding=encoding, skip=1)


def untitled(
    path: Path,
    names: Sequence[str],
    *,
    delimiter: str = "\t",
    quoted: bool = False,
    encoding: str = "utf-8",
    skip: int = 0,
) -> pa.Table:
    """A separated file without names for its columns, each as text, called `names`; see `titled`."""
    if path.is_file() and path.stat().st_size == 0:
        return pa.table({name: pa.array([], STRING) for name in names})
    try:
        return pacsv.read_csv(
            path,
            read_options=pacsv.ReadOptions(
                column_names=list(names),
                skip_rows=skip,
                encoding=encoding,
                block_size=BLOCK_BYTES,
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted
            ),
            convert_options=pacsv.ConvertOptions(column_types=dict.fromkeys(names, STRING), strings_can_be_null=False),
        )
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file") from error
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        for _ in read_lines(path, encoding):
            pass  # Says where, if the reason is a byte that is not text.
        reason = " ".join(str(error).split())[:300]
        raise SchemaError(
            f"{path}: cannot be read as columns {', '.join(names)} ({reason}); look for a row with another number of "
            "fields, or an unclosed quote"
        ) from error


def is_utf8(path: Path) -> bool:
    """Whether the whole file is UTF-8."""
    try:
        for _ in read_lines(path):
            pass
    except SchemaError:
        return False
    return True
