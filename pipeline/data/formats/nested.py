"""Fields of nested objects as columns: in {"product": {"title": "y"}} the column product.title has the value y."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

MOST_LEVELS = 16
"""Levels of objects within objects whose fields are columns."""


def flat(row: Mapping[str, Any], levels: int = MOST_LEVELS) -> dict[str, Any]:
    """The values of a row under their keys, and the fields of its objects under dotted paths as well.

    A key that itself is written with dots comes before a path. The entries of a list have no names.
    """
    values: dict[str, Any] = {}
    for key, value in row.items():
        values[key] = value
        if isinstance(value, dict) and levels > 1:
            for path, field in flat(value, levels - 1).items():
                if f"{key}.{path}" not in row:
                    values[f"{key}.{path}"] = field
    return values


def columns_of(rows: Iterable[Mapping[str, Any]], wanted: Collection[str]) -> dict[str, Any]:
    """The columns of rows, each with its first value that says something, or None.

    Args:
        wanted: columns that are kept where they hold objects; of other objects only the fields are columns.
    """
    columns: dict[str, Any] = {}
    objects: set[str] = set()
    for row in rows:
        for name, value in flat(row).items():
            if isinstance(value, dict):
                objects.add(name)
            if columns.get(name) in (None, ""):
                columns[name] = value
    return {name: value for name, value in columns.items() if name in wanted or name not in objects}


def parents(path: str) -> list[str]:
    """The columns that a dotted path leads through, the outermost first: a and a.b of a.b.c."""
    keys = path.split(".")
    return [".".join(keys[:count]) for count in range(1, len(keys))]


def obstacle(row: Mapping[str, Any], path: str) -> str:
    """The column on a path that holds neither an object nor null in a row; empty without one.

    Args:
        row: a row as `flat` gives it.
    """
    return next((name for name in parents(path) if not isinstance(row.get(name), dict | None)), "")


def empty_row(schema: pa.Schema) -> dict[str, Any]:
    """The columns of a Parquet file as a row without values, in which a struct is an object."""
    return {field.name: _no_values(field.type) for field in schema}


def _no_values(kind: pa.DataType) -> dict[str, Any] | None:
    if not pa.types.is_struct(kind):
        return None
    fields = [kind.field(number) for number in range(len(kind))]
    return {field.name: _no_values(field.type) for field in fields}


def with_fields(table: pa.Table, wanted: Iterable[str]) -> pa.Table:
    """The table with a column for each wanted path to a field of its structs, null where a struct on the way is null.

    Args:
        wanted: names of columns, and paths; those that are not there are left out.
    """
    columns = dict(zip(table.column_names, table.columns, strict=True))
    for path in dict.fromkeys(wanted):
        if path not in columns and (field := _field(columns, path)) is not None:
            table = table.append_column(path, field)
    return table


def _field(columns: Mapping[str, pa.ChunkedArray], path: str) -> pa.ChunkedArray | None:
    """The column of a name or path; None where it leads to nothing."""
    if path in columns:
        return columns[path]
    for name in parents(path):
        if name in columns and pa.types.is_struct(kind := columns[name].type):
            inner = {kind.field(number).name: pc.struct_field(columns[name], number) for number in range(len(kind))}
            if (field := _field(inner, path.removeprefix(f"{name}."))) is not None:
                return field
    return None
