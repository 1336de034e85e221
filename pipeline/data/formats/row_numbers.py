"""Tells an `id` that numbers the judgments of a table from one that names their documents.

Tables of judged texts often have one: `id, query, product_title, relevance`. Taken for the id of a document it would
make another document of each row, though one product is judged for many queries.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from pipeline.config import SourceConfig
from pipeline.data.formats import column_map, mapped_columns, sql, table

MOST_TEXTS = 0.9
"""Different texts for each row, up to which texts come again too often for each row to be another document."""


def is_row_number(source: SourceConfig, columns: Mapping[str, str], root: Path) -> bool:
    """Whether the column guessed as `doc_id` gives another id to each row of judgments, though their texts come again.

    Reads the ids and texts of the table, if its name says no more than `id`.

    Args:
        source: a table or query; what its map names is not looked at.
        columns: the map of the table.

    Raises:
        ConfigError, MissingError, SchemaError, UnavailableError: the table cannot be read.
    """
    judged = "query" in columns and column_map.JUDGED & set(columns)
    texts = [key for key in ("title", "text") if key in columns]
    if not (judged and texts and column_map.is_bare_id(columns.get("doc_id", ""))):
        return False
    wanted = {key: columns[key] for key in ("doc_id", *texts)}
    rows = _rows(replace(source, columns=wanted), root)
    if rows.num_rows < 2 or rows.group_by("doc_id").aggregate([]).num_rows < rows.num_rows:
        return False
    return bool(rows.group_by(texts).aggregate([]).num_rows <= MOST_TEXTS * rows.num_rows)


def _rows(source: SourceConfig, root: Path) -> pa.Table:
    """The mapped columns of a table, all rows."""
    if "://" in source.path:
        values, _ = sql.values_of(source, root)
        return pa.table({key: [str(value) for value in column] for key, column in values.items()})
    files = column_map.files_of(root / source.path)
    return table.as_one([mapped_columns.read(file, source.columns) for file in files], files)
