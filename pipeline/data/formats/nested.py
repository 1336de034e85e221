"""Fields of nested objects as columns: in {"product": {"title": "y"}} the column product.title has the value y.

A field of the objects in a list is a list: in {"passages": [{"text": "y"}, {"text": "z"}]} passages.text is ["y", "z"].
A null among the objects is an object without fields.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

MOST_LEVELS = 16
"""Levels of objects within objects whose fields are columns."""


def flat(row: Mapping[str, Any], levels: int = MOST_LEVELS) -> dict[str, Any]:
    """The values of a row under their keys, and the fields of its objects under dotted paths as well.

    A key that itself is written with dots comes before a path. The other entries of a list have no names.
    """
    values: dict[str, Any] = {}
    for key, value in row.items():
        values[key] = value
        if levels > 1:
            for path, field in _fields(value, levels - 1).items():
                if f"{key}.{path}" not in row:
                    values[f"{key}.{path}"] = field
    return values


def _fields(value: Any, levels: int) -> dict[str, Any]:
    """The fields of an object, or of the objects in a list; empty for any other value."""
    if isinstance(value, dict):
        return flat(value, levels)
    if not value or not _is_of_objects(value):
        return {}
    entries = [flat(entry or {}, levels) for entry in value]
    names = dict.fromkeys(name for entry in entries for name in entry)
    return {name: [entry.get(name) for entry in entries] for name in names}


def _is_of_objects(value: Any) -> bool:
    """Whether this is a list of nothing but objects and null."""
    return isinstance(value, list) and all(isinstance(entry, dict | None) for entry in value)


def _holds_objects(value: Any) -> bool:
    """Whether this is an object, or a list with entries that are objects, lists of objects or null."""
    entries = [entry for entry in value if entry is not None] if isinstance(value, list) else []
    return isinstance(value, dict) or (bool(entries) and all(map(_holds_objects, entries)))


def columns_of(rows: Iterable[Mapping[str, Any]], wanted: Collection[str]) -> dict[str, Any]:
    """The columns of rows, each with its first value that says something, or None.

    Args:
        wanted: columns that are kept where they hold objects; of other objects only the fields are columns.
    """
    columns: dict[str, Any] = {}
    objects: set[str] = set()
    for row in rows:
        for name, value in flat(row).items():
            if _holds_objects(value):
                objects.add(name)
            if columns.get(name) in (None, "", [None]):
                columns[name] = value
    return {name: value for name, value in columns.items() if name in wanted or name not in objects}


def parents(path: str) -> list[str]:
    """The columns that a dotted path leads through, the outermost first: a and a.b of a.b.c."""
    keys = path.split(".")
    return [".".join(keys[:count]) for count in range(1, len(keys))]


def obstacle(row: Mapping[str, Any], path: str) -> str:
    """The column on a path that holds neither objects nor null in a row; empty without one.

    Args:
        row: a row as `flat` gives it.
    """
    values = ((name, row.get(name)) for name in parents(path))
    return next((name for name, value in values if not (isinstance(value, dict | None) or _is_of_objects(value))), "")


def empty_row(schema: pa.Schema) -> dict[str, Any]:
    """The columns of a Parquet file as a row without values, in which a struct is an object."""
    return {field.name: _no_values(field.type) for field in schema}


def is_list(kind: pa.DataType) -> bool:
    """Whether this is one of Arrow's types of lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _no_values(kind: pa.DataType) -> dict[str, Any] | list[Any] | None:
    if is_list(kind) and pa.types.is_struct(kind.value_type):
        return [_no_values(kind.value_type)]
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
        inner = _fields_of_column(columns[name]) if name in columns else {}
        if (field := _field(inner, path.removeprefix(f"{name}."))) is not None:
            return field
    return None


def _fields_of_column(column: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
    """The fields of a column of structs, or of lists of structs, where each field is a list; empty for any other."""
    column = flattened(column)
    kind = column.type
    if pa.types.is_struct(kind):
        return {kind.field(number).name: pc.struct_field(column, number) for number in range(len(kind))}
    if not (is_list(kind) and pa.types.is_struct(kind.value_type)):
        return {}
    lists = column.combine_chunks()
    fields = _fields_of_column(pa.chunked_array([pc.list_flatten(lists)]))
    return {
        name: pa.chunked_array([pa.LargeListArray.from_arrays(_offsets(lists), field.combine_chunks())])
        for name, field in fields.items()
    }


def flattened(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of lists of lists as one of lists with all their entries; any other column as it is."""
    while is_list(column.type) and is_list(column.type.value_type):
        outer = column.combine_chunks()
        inner = pc.list_flatten(outer)
        offsets = _offsets(inner).take(_offsets(outer))
        column = pa.chunked_array([pa.LargeListArray.from_arrays(offsets, pc.list_flatten(inner))])
    return column


def _offsets(lists: pa.Array) -> pa.Array:
    """(lists + 1,) where each list begins among the entries of all; null is a list without entries."""
    lengths = pc.cast(pc.fill_null(pc.list_value_length(lists), 0), pa.int64())
    return pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(lengths)])
