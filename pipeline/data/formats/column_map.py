"""The map of a table's columns: its keys, the columns that a table has, and the map that fits them best."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path

from pipeline.data import clicks
from pipeline.data.formats import parquet_reader, tables, text_files
from pipeline.errors import SchemaError
from pipeline.text import read_lines, refuse_old_line_ends

JSON_LINES = (".jsonl", ".ndjson", ".json")
"""File name endings of files with one JSON object a line."""
SUFFIXES = (".csv", ".tsv", ".tab", *JSON_LINES, ".parquet")
"""File name endings of tables, all in lower case."""
FIRST_LINES = 1000
"""Number of JSON lines whose keys are the columns of their table; a later key may still be mapped."""
DELIMITERS = (",", "\t", ";", "|")
"""Separators of columns that a text file is tried with."""
ROLES = ("query_id", "query", "doc_id", "title", "text", "grade", "split", "source")
"""Keys of a map of columns that have a meaning; any other keeps a column of the documents."""

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "search_term", "search", "keyword", "keywords", "question", "search_query", "query_text", "q"),
    "title": ("title", "product_title", "name", "product_name", "headline", "subject"),
    "text": ("text", "body", "description", "content", "product_description", "passage", "document", "abstract"),
    "grade": (
        "grade",
        "relevance",
        "label",
        "rating",
        "stars",
        "score",
        "judgment",
        "judgement",
        "gain",
        "median_relevance",
    ),
    "query_id": ("query_id", "qid", "query-id", "queryid", "topic_id"),
    "doc_id": (
        "doc_id",
        "docid",
        "docno",
        "doc_no",
        "pid",
        "_id",
        "product_id",
        "product_uid",
        "corpus-id",
        "document_id",
        "item_id",
        "sku",
        "asin",
        "id",
    ),
    "split": ("split",),
    "position": ("position", "rank", "pos"),
    "clicked": ("clicked", "click", "is_click", "is_clicked"),
    "session": ("session", "session_id"),
    "time": ("time", "timestamp"),
}
"""Usual names of each kind of column, the likeliest first."""


def roles(keys: Collection[str]) -> tuple[str, ...]:
    """The keys of a map of columns that have a meaning; those of click logs have one beside `clicked` alone."""
    return (*ROLES, *clicks.ROLES) if "clicked" in keys else ROLES


def files_of(path: Path) -> list[Path]:
    """The table files that a path means: itself, those of a folder, or those that match its last part."""
    if path.is_file():
        return [path] if path.suffix.lower() in SUFFIXES else []
    folder, pattern = (path, "*") if path.is_dir() else (path.parent, path.name)
    return [file for file in tables.data_files(folder, pattern) if file.suffix.lower() in SUFFIXES]


def suggest(names: Sequence[str]) -> dict[str, str]:
    """The likeliest of these names for each key of a map of columns; each name is used once."""
    folded = {name.strip().casefold().replace(" ", "_"): name for name in reversed(names)}
    best: dict[str, str] = {}
    for role, known in SYNONYMS.items():
        free = [name for name in folded if folded[name] not in best.values()]
        match = next((name for name in known if name in free), None)
        near = [] if role in clicks.ROLES else difflib.get_close_matches(role, free, 1, 0.75)
        if match or near:
            best[role] = folded[match or near[0]]
    if "grade" in best or not {"position", "clicked"} <= set(best):
        return {role: name for role, name in best.items() if role not in clicks.ROLES}
    return {role: name for role, name in best.items() if role != "split" and (role != "time" or "session" in best)}


def samples_of(file: Path, wanted: Sequence[str] = ()) -> dict[str, str]:
    """The names of a table's columns, each with its value in the first row; of JSON lines those of the first 1,000.

    Args:
        wanted: names that tell the separator of columns; see `delimiter_of`.
    """
    if file.suffix.lower() in JSON_LINES:
        samples: dict[str, str] = {}
        for _, row in islice(text_files.json_lines(file), FIRST_LINES):
            for name, value in row.items():
                samples[name] = samples.get(name) or ("" if value is None else str(value))
        return samples
    if file.suffix.lower() == ".parquet":
        return parquet_reader.first_values(file)
    names, *rows = text_files.first_rows(file, delimiter_of(file, wanted), 2) or [[]]
    return dict(zip_longest(names, rows[0] if rows else [], fillvalue=""))


def has_later_keys(file: Path) -> bool:
    """Whether this is a file of JSON lines that goes on after those whose keys `samples_of` looks at."""
    if file.suffix.lower() not in JSON_LINES:
        return False
    return next(islice(read_lines(file), FIRST_LINES, None), None) is not None


def delimiter_of(file: Path, wanted: Sequence[str]) -> str:
    """The separator whose first row has most of the wanted names, and then most names; tabs first for .tsv."""
    known = sorted(DELIMITERS, key=lambda delimiter: delimiter != "\t") if file.suffix.lower() != ".csv" else DELIMITERS

    refuse_old_line_ends(file)

    def fit(delimiter: str) -> tuple[int, int]:
        try:
            names = text_files.header(file, delimiter)
        except SchemaError:
            return (0, 0)
        return len(set(wanted) & set(names)), len(names)

    return max(known, key=fit)
