"""Text files as others publish them: lines, JSON lines, separated values; every error names the file and the place."""

import codecs
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from pipeline.errors import MissingError, SchemaError

BLOCK_BYTES = 1 << 26
"""Read at once; also the longest row of a separated file."""

STRING = pa.large_string()


def lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of each line that is not blank; a byte order mark is dropped.

    Raises:
        MissingError: no such file.
        SchemaError: a byte that is not of the encoding; the message has its position in the file.
    """
    start = 0
    for number, raw in enumerate(_raw_lines(path), start=1):
        try:
            line = raw.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode(encoding)
        except UnicodeDecodeError as error:
            raise _wrong_byte(path, start + error.start, f"line {number}, ") from error
        start += len(raw)
        if line.strip():
            yield number, line.rstrip("\r\n")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, object) of each line of a JSON lines file.

    Raises:
        MissingError: no such file.
        SchemaError: not UTF-8, or a line that is not a JSON object.
    """
    for number, line in lines(path):
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
    first = next(lines(path, encoding), None)
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
        for _ in lines(path, encoding):
            pass  # Says where, if the reason is a byte that is not text.
        reason = " ".join(str(error).split())[:300]
        raise SchemaError(
            f"{path}: cannot be read as columns {', '.join(names)} ({reason}); look for a row with another number of "
            "fields, or an unclosed quote"
        ) from error


def is_utf8(path: Path) -> bool:
    """Whether the whole file is UTF-8."""
    try:
        for _ in lines(path):
            pass
    except SchemaError:
        return False
    return True


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file") from error
    except OSError as error:
        raise SchemaError(f"{path}: cannot be read ({error})") from error


def _wrong_byte(path: Path, position: int, line: str) -> SchemaError:
    with path.open("rb") as file:
        file.seek(position)
        byte = file.read(1)
    return SchemaError(
        f"{path}, {line}byte {position}: 0x{byte.hex()} is not UTF-8; convert the file, for example with "
        "`iconv -f GB18030 -t UTF-8`"
    )
