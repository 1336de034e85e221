"""Our own layout: Parquet tables of documents, queries and judgments in one folder. Texts stay as they are."""

from pathlib import Path

from pipeline.data.formats import parquet_reader, tables
from pipeline.data.formats.tables import Tables, first_file

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
