"""Our own layout: Parquet tables of documents, queries and judgments in one folder. Texts stay as they are."""

from pathlib import Path

from pipeline.config import SourceConfig
from pipeline.data.formats import parquet_reader, tables
from pipeline.data.formats.tables import FoundSource, Tables, first_file

NAME = "parquet"
LOOKED_FOR = "documents.parquet (or corpus.parquet), queries.parquet, judgments.parquet (or qrels.parquet)"
OWN_COLUMNS = ("doc_id", "title", "text")
"""Columns by which a single Parquet file is a table of documents of ours; one without them needs a map."""

_PARQUET = {
    "documents": ("documents.parquet", "corpus.parquet"),
    "queries": ("queries.parquet",),
    "judgments": ("judgments.parquet", "qrels.parquet"),
}


def parquet_files(path: Path) -> list[Path]:
    """The tables of our layout in a folder, or one .parquet file, which holds documents."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    return [file for names in _PARQUET.values() if (file := first_file(path, names))]


def parquet(path: Path) -> Tables:
    """documents (or corpus), queries, and judgments (or qrels) .parquet; columns as in `pipeline.schema`."""
    if path.is_file():
        return Tables(documents=parquet_reader.read(path, "documents"))
    parts = {
        kind: parquet_reader.read(file, kind) for kind, names in _PARQUET.items() if (file := first_file(path, names))
    }
    judgments = parts.get("judgments")
    if judgments is not None and "split" in judgments.column_names:
        column = judgments.column_names.index("split")
        parts["judgments"] = judgments.set_column(column, "split", tables.splits(judgments["split"]))
    return Tables(**parts)


_FORMAT = tables.of_files(NAME, LOOKED_FOR, parquet_files, parquet)


def find(config: SourceConfig, root: Path) -> FoundSource | None:
    """The tables of our layout; see `tables.Format`. A single file of other columns is of it only where that is said.

    Raises:
        SchemaError: a single file that is not readable Parquet.
    """
    path = root / config.path
    is_file = "://" not in config.path and not config.columns and path.is_file() and bool(parquet_files(path))
    if is_file and config.format == "auto" and not set(OWN_COLUMNS) <= set(parquet_reader.column_names(path)):
        return None
    return _FORMAT.find(config, root)
