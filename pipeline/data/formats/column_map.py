"""The map of a table's columns: its keys, the columns that a table has, and the map that fits them best."""

import difflib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.data import clicks
from pipeline.data.formats import tables, text_files
from pipeline.errors import MissingError, SchemaError

JSON_LINES = (".jsonl", ".ndjson", ".json")
"""File name endings of files with one JSON object a line."""
SUFFIXES = (".csv", ".tsv", ".tab", *JSON_LINES, ".parquet")
"""File name endings of tables, all in lower case."""
DELIMITERS = (",", "\t", ";", "|")
"""Separators of columns that a text file is tried with."""
ROLES = ("query_id", "query", "doc_id", "title", "text", "grade", "split", "source")
"""Keys of a map of columns that have a meaning; any other keeps a column of the documents."""

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "search_term", "search", "keyword", "keywords", "question", "search_query", "q"),
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
    "query_id": ("query_id", "qid", "query-id", "queryid"),
    "doc_id": (
        "doc_id",
        "docid",
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
_SEPARATORS = re.compile(r"[^\w\s'\"().-]")


def roles(keys: Collection[str]) -> tuple[str, ...]:
    """The keys of a map of columns that have a meaning; those of click logs have one beside `clicked` alone."""
    return (*ROLES, *clicks.ROLES) if "clicked" in keys else ROLES


def files_of(path: Path) -> list[Path]:
    """The table files that a path means: itself, those of a folder, or those that match its last part."""
    if path.is_file():
        return [path] if path.suffix.lower() in SUFFIXES else []
    folder, pattern = (path, "*") if path.is_dir() else (path.parent, path.name)
    return [file for file in tables.data_files(folder, pattern) if file.suffix.lower() in SUFFIXES]


def advice(path: Path) -> str:
    """The columns of the table at a path and the map that would fit best, to be put behind a message; or nothing."""
    files = files_of(path)
    if not files:
        return ""
    try:
        names = names_of(files[0])
    except (SchemaError, MissingError, OSError, pa.ArrowException) as error:
        return f"\nA table could be read by a map of its columns, but {error}"
    if not any(name.strip() for name in names):
        return f"\n{files[0].name} is empty, or its first line is; the first line names the columns"
    best = suggest(names)
    shown = ", ".join(names[:40]) + (", …" if len(names) > 40 else "")
    if not best and len(names) == 1 and (marks := _SEPARATORS.findall(names[0])):
        return (
            f"\n{files[0].name} has one column, {shown}; if {marks[0]!r} separates its columns, write the file with a "
            "comma, a tab, ';' or '|' in its place"
        )
    if not best:
        return (
            f"\n{files[0].name} has the columns {shown}; none looks like a query, a title or a grade. Its first line "
            "must name the columns: put one there, or map them by hand: --columns query=NAME,title=NAME,grade=NAME"
        )
    return f"\n{files[0].name} has the columns {shown}. The map that fits best: {written(best)}"


def written(best: Mapping[str, str]) -> str:
    """A map of columns as a person writes it, in a recipe or on the command line."""
    toml = ", ".join(f"{role} = {json.dumps(name, ensure_ascii=False)}" for role, name in best.items())
    option = ",".join(f"{role}={name}" for role, name in best.items())
    return f"columns = {{ {toml} }} in the recipe's source, or --columns {option!r} on the command line"


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


def names_of(file: Path, wanted: Sequence[str] = ()) -> list[str]:
    """Names of a table's columns; of separators, the one is taken under which most of the wanted names are found."""
    if file.suffix.lower() in JSON_LINES:
        return list(next(text_files.json_lines(file), (0, {}))[1])
    if file.suffix.lower() == ".parquet":
        return tables.parquet_names(file)
    return text_files.header(file, delimiter_of(file, wanted))


def delimiter_of(file: Path, wanted: Sequence[str]) -> str:
    """The separator whose first row has most of the wanted names, and then most names; tabs first for .tsv."""
    known = sorted(DELIMITERS, key=lambda delimiter: delimiter != "\t") if file.suffix.lower() != ".csv" else DELIMITERS

    def fit(delimiter: str) -> tuple[int, int]:
        try:
            names = text_files.header(file, delimiter)
        except SchemaError:
            return (0, 0)
        return len(set(wanted) & set(names)), len(names)

    return max(known, key=fit)
