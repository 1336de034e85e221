"""Reads the mapped columns of one CSV, TSV, JSON lines or Parquet file: each under its key, known roles as texts."""

import bisect
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import text
from pipeline.data.clicks import impressions
from pipeline.data.formats import (
    column_advice,
    document_lists,
    nested,
    parquet_reader,
    row_locations,
    separated_files,
    tables,
    text_files,
)
from pipeline.data.formats.column_map import JSON_LINES, delimiter_of, roles, samples_of
from pipeline.data.formats.row_locations import FileRows
from pipeline.data.formats.text_files import STRING
from pipeline.errors import SchemaError


def read(file: Path, columns: Mapping[str, str]) -> pa.Table:
    """The mapped columns of one file under their keys; known roles as texts."""
    wanted = list(dict.fromkeys(columns.values()))
    suffix = file.suffix.lower()
    if suffix in JSON_LINES:
        return _read_json(file, columns)
    delimiter = "" if suffix == ".parquet" else delimiter_of(file, wanted)
    names = separated_files.header(file, delimiter) if delimiter else parquet_reader.column_names(file)
    if not set(wanted) <= set(names):
        raise SchemaError(f"{file}: {column_advice.fault(columns, samples_of(file, wanted))}")
    rows = (
        separated_files.titled(file, wanted, delimiter=delimiter)
        if delimiter
        else parquet_reader.read_foreign(file, wanted, wanted_only=True)
    )
    known = roles(columns)
    cells = {
        role: _text(rows[name], role, f"{file}: column {name!r}") if role in known else rows[name]
        for role, name in columns.items()
    }
    return pa.table(cells)


def rows_of(file: Path, count: int, wanted: Sequence[str]) -> FileRows:
    """The rows of one file, to be named in messages; `wanted` are the names of its mapped columns."""
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return row_locations.numbered(file, count)
    if suffix in JSON_LINES:
        return row_locations.one_a_line(file, count)
    return row_locations.separated(file, count, lambda: delimiter_of(file, wanted))


def _text(values: pa.ChunkedArray, role: str, shown: str) -> pa.ChunkedArray:
    """The column of a role as text, or as lists of texts; null becomes an empty string, lists of lists one list.

    Args:
        values: the column.
        role: the key of the map that names it.
        shown: the file and the column, for messages.
    """
    is_listed = role in document_lists.LISTED and nested.is_list(values.type)
    values = nested.flattened(values) if is_listed else values
    if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        values = _decoded(values, shown)
    if role in ("query_id", "doc_id") and pa.types.is_floating(values.type):
        values = _whole_numbers(values, role, shown)
    if not _fits(values.type.value_type if is_listed else values.type, role):
        raise SchemaError(
            f"{shown}, mapped as {role}, is {values.type}, not text; write it as text, or map another column"
        )
    if is_listed:
        return pc.cast(values, pa.list_(STRING))
    return pc.fill_null(pc.cast(values, STRING), "")


def _fits(kind: pa.DataType, role: str) -> bool:
    """Whether a role takes values of a type as text."""
    fits = tables.is_text(kind)
    if role in ("query_id", "doc_id", "grade", *impressions.ROLES):
        fits |= pa.types.is_integer(kind)
    if role in ("grade", *impressions.ROLES):
        fits |= pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_boolean(kind)
    if role in impressions.ROLES:
        fits |= pa.types.is_timestamp(kind)
    return fits


def _decoded(values: pa.ChunkedArray, shown: str) -> pa.ChunkedArray:
    """Bytes as the text that they are in UTF-8, as some programs write text into Parquet."""
    try:
        return pc.cast(pc.cast(values, pa.large_binary()), STRING)
    except pa.ArrowInvalid as error:
        raise SchemaError(f"{shown} holds bytes that are not UTF-8; write it as text, or map another column") from error


def _whole_numbers(values: pa.ChunkedArray, role: str, shown: str) -> pa.ChunkedArray:
    """Ids as whole numbers, which pandas writes as floats where one of them is missing, as null or as NaN."""
    known = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    try:
        return pc.cast(known, pa.int64())
    except pa.ArrowInvalid as error:
        raise SchemaError(
            f"{shown}, mapped as {role}, holds fractions ({error}); write it as text, or map another column"
        ) from error


def _read_json(file: Path, columns: Mapping[str, str]) -> pa.Table:
    """The mapped columns of a JSON lines file under their keys; known roles as texts."""
    values: dict[str, list[Any]] = {role: [] for role in columns}
    known = roles(columns)
    never_seen, number, problem = set(columns.values()), 0, ""
    has_paths = any("." in name for name in columns.values())
    for number, row in text_files.json_lines(file):
        cells = nested.flat(row) if has_paths else row
        never_seen -= cells.keys()
        for role, name in columns.items():
            value = _json_text(cells.get(name), role) if role in known else cells.get(name)
            values[role].append(value)
            if (value is None or name not in cells) and not problem:
                reason = _json_fault(cells, role, name, is_no_text=value is None and role in known)
                problem = reason and f"line {number}: {reason}; it has {list(row)[:40]}"
    if never_seen and number:
        raise SchemaError(f"{file}: {column_advice.fault(columns, samples_of(file, list(columns.values())))}")
    if problem:
        raise SchemaError(f"{file}, {problem}")
    return pa.table({role: _json_column(file, role, cells, is_text=role in known) for role, cells in values.items()})


def _json_fault(cells: Mapping[str, Any], role: str, name: str, *, is_no_text: bool) -> str:
    """The reason why a row of JSON cannot have this value under a name or path; empty where it can."""
    if name not in cells and (holder := nested.obstacle(cells, name)):
        return f"{holder!r} is {json.dumps(cells[holder])[:60]}, not an object, and {name!r} names a field of it"
    return f"{name!r} is {json.dumps(cells.get(name))[:60]}, not a text for {role}" if is_no_text else ""


def _json_column(file: Path, role: str, cells: Sequence[Any], *, is_text: bool) -> pa.Array:
    kind = STRING if is_text else None
    if is_text and any(isinstance(cell, list) for cell in cells):
        cells, kind = [_entries(cell) for cell in cells], pa.list_(STRING)
    try:
        values = pa.array(cells, kind)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        index = _first_unfit(cells, kind)
        (location,) = row_locations.in_files([row_locations.one_a_line(file, len(cells))], file)([index])
        raise SchemaError(f"{file}, {location}: the {role} {_misfit(cells[index], error)}") from error
    if _lacks_fields(values.type):
        raise SchemaError(
            f"{file}: the {role} holds objects without fields, which no table can keep; leave it out of the columns"
        )
    return values


def _first_unfit(cells: Sequence[Any], kind: pa.DataType | None) -> int:
    """The index of the first value that makes a column of these impossible."""

    def fails(count: int) -> bool:
        try:
            pa.array(cells[:count], kind)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):
            return True
        return False

    return bisect.bisect_left(range(len(cells)), True, key=lambda index: fails(index + 1))


def _misfit(cell: Any, error: Exception) -> str:
    """The reason why a value cannot be in its column, from the error of Arrow."""
    advice = "write all of them as one kind, or leave it out of the columns"
    if isinstance(error, OverflowError):
        return f"holds a whole number of more than 64 bits; {advice}"
    if isinstance(error, UnicodeEncodeError):
        reason = next(filter(None, map(text.fault, _entries(cell))), None)
        return reason or f"holds text that is not valid Unicode ({error})"
    return f"is of another kind than before ({error}); {advice}"


def _lacks_fields(kind: pa.DataType) -> bool:
    """Whether this is a type of objects without fields, or one that holds such."""
    if pa.types.is_struct(kind) and not kind.num_fields:
        return True
    return any(_lacks_fields(kind.field(number).type) for number in range(kind.num_fields))


def _entries(cell: Any) -> list[str]:
    """The texts of a list; of a text the text itself, and none of an empty one."""
    if isinstance(cell, list):
        return [entry for entry in cell if isinstance(entry, str)]
    return [cell] if cell and isinstance(cell, str) else []


def _json_text(value: Any, role: str) -> str | list[str] | None:
    """The text or texts of a JSON value for a role; None where the value is of a type that the role does not take.

    Lists in a list, as from the objects of lists in a list, are one list of all their entries.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and role in document_lists.LISTED:
        if any(isinstance(entry, list) for entry in value):
            lists = [entry if isinstance(entry, list) else [entry] for entry in value if entry is not None]
            return _json_text(list(itertools.chain.from_iterable(lists)), role)
        entries = [_json_text(entry, role) for entry in value]
        return [entry for entry in entries if isinstance(entry, str)] if None not in entries else None
    if value is None:
        return None if role in impressions.ROLES else ""  # Of an id, a query or a grade, that is a fault of its row.
    if isinstance(value, bool):
        return str(value).lower() if role in ("clicked", "grade") else None
    number = isinstance(value, (int, float) if role in ("grade", *impressions.ROLES) else int)
    return str(value) if number and role in ("query_id", "doc_id", "grade", *impressions.ROLES) else None
