"""Rows that hold several documents of a query become rows of one document each.

    {"query": "knife", "positive": "a knife", "negative": ["a fork", "a spoon"]}            grades 1, 0 and 0
    {"query": "knife", "passages": {"text": ["a knife", "a fork"], "selected": [1, 0]}}     text and grade are lists

A list of texts beside a single grade is one text.
"""

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.formats import row_locations
from pipeline.data.formats.nested import is_list
from pipeline.data.formats.text_files import STRING
from pipeline.errors import ConfigError, SchemaError
from pipeline.schema import NameRows
from pipeline.text import counted

ROLES = ("positive", "negative")
"""Keys of the map of columns that have a meaning beside `positive`: texts that are relevant, and ones that are not."""
SEPARATORS = {"title": " ", "text": "\n"}
"""Roles whose lists are joined where a row has a single document, and what stands between the entries."""
LISTED = (*ROLES, "grade", "doc_id", *SEPARATORS)
"""Roles whose values may be lists; one of ids stands beside a list of grades alone."""
KEPT_APART = ("grade", "clicked", "position", "session", "time", "title", "text", "doc_id", "split", "source")
"""Keys that cannot stand beside `positive`, as they say something of a single document."""


def _check_keys(keys: Collection[str], shown: str) -> None:
    """Raises ConfigError where `positive` stands beside keys of a single document, or `negative` without it."""
    beside = [key for key in KEPT_APART if key in keys]
    if "positive" in keys and beside:
        raise ConfigError(
            f"{shown}: columns maps positive and {', '.join(beside)}; positive gives text and grade itself"
        )
    if "negative" in keys and "positive" not in keys:
        raise ConfigError(f"{shown}: columns maps negative, but not positive; map the relevant texts too")


def opened(rows: pa.Table, locations: NameRows, shown: str) -> tuple[pa.Table, NameRows]:
    """The rows with one document each, every role as text, and their locations.

    Args:
        rows: columns called by their roles; those of `LISTED` may hold lists of texts.
        locations: the locations of the rows in their files.
        shown: the source's address, for messages.

    Raises:
        ConfigError: keys of the map that do not go together.
        SchemaError: a row has another number of texts than of grades.
    """
    _check_keys(rows.column_names, shown)
    if "positive" in rows.column_names:
        parts = [_flat(rows, [role], ROLES) for role in ROLES if role in rows.column_names]
        tables = [
            table.rename_columns({role: "text"}).append_column("grade", _constant(grade, table.num_rows))
            for (table, _), role, grade in zip(parts, ROLES, ("1", "0"), strict=False)
        ]
        origins = pa.concat_arrays([origin for _, origin in parts])
        order = pc.sort_indices(origins)  # Stable: the relevant texts of a row stay before the others.
        origins, rows = origins.take(order), pa.concat_tables(tables).take(order)
        return rows, row_locations.of_chosen(origins, locations)
    lists = [role for role in LISTED if role in rows.column_names and is_list(rows.schema.field(role).type)]
    if "grade" not in lists and "doc_id" in lists:
        raise SchemaError(
            f"{shown}: the column mapped as doc_id holds lists; map a list of grades too, or another column"
        )
    if "grade" not in lists:
        return _joined(rows, lists), locations
    _check_lengths(rows, lists, locations, shown)
    rows, origins = _flat(rows, lists, lists)
    return rows, row_locations.of_chosen(origins, locations)


def _joined(rows: pa.Table, lists: Collection[str]) -> pa.Table:
    """The rows with each list of texts as one text."""
    for role in lists:
        texts = [SEPARATORS[role].join(filter(None, cells or [])) for cells in rows[role].to_pylist()]
        rows = rows.set_column(rows.column_names.index(role), role, pa.array(texts, STRING))
    return rows


def _flat(rows: pa.Table, roles: Collection[str], left_out: Collection[str]) -> tuple[pa.Table, pa.Array]:
    """The rows once for each entry of their lists, and the number of the row that each comes from.

    Args:
        roles: the columns whose entries are put in place of the lists; a text is a list of one, an empty text of none.
        left_out: columns of which only those of `roles` are kept.
    """
    columns = {role: _as_lists(rows[role].combine_chunks()) for role in roles}
    first, *_ = columns.values()
    origins = pc.cast(pc.list_parent_indices(first), pa.int64())
    flat = {name: rows[name].take(origins) for name in rows.column_names if name not in left_out}
    flat |= {role: pc.fill_null(pc.cast(pc.list_flatten(lists), STRING), "") for role, lists in columns.items()}
    return pa.table(flat), origins


def _as_lists(values: pa.Array) -> pa.Array:
    """The lists of a column; of texts, lists of one, and of none where a text is empty."""
    if is_list(values.type):
        return values
    return pa.array([[cell] if cell else [] for cell in values.to_pylist()], pa.list_(STRING))


def _constant(value: str, rows: int) -> pa.Array:
    return pa.array([value] * rows, STRING)


def _check_lengths(rows: pa.Table, lists: Collection[str], locations: NameRows, shown: str) -> None:
    """Raises SchemaError where the lists of a row are not equally long."""
    lengths = {role: pc.fill_null(pc.list_value_length(rows[role]), 0).to_pylist() for role in lists}
    for row, counts in enumerate(zip(*lengths.values(), strict=True)):
        if len(set(counts)) > 1:
            has = " and ".join(counted(count, role) for role, count in zip(lengths, counts, strict=True))
            raise SchemaError(f"{shown}: {locations([row])[0]} has {has}; its lists must be equally long")
