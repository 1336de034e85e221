"""The map of the columns of a table: the given one, completed or guessed by the usual names of columns."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flows import data_advice
from pipeline import text
from pipeline.config import SourceConfig
from pipeline.errors import RelevanceError, SchemaError
from pipeline.secrets import hide_passwords

if TYPE_CHECKING:
    from pipeline.data.formats.column_advice import Contents

log = logging.getLogger(__name__)


def with_columns(source: SourceConfig, contents: "Contents | None") -> SourceConfig:
    """The source with a column map if it is a single table: the given map, or the one that fits its columns best.

    Keys that the given map leaves out are guessed too for judgments, and for documents of which it names no text.

    Args:
        contents: what the table holds, which decides the keys that the map needs; None leaves it to the columns, see
            `column_advice.fitted`.

    Raises:
        SchemaError: the map names a column that is not there, or lacks one that is needed and has no usual name; the
            message has the map to type.
        ConfigError, MissingError: a database or a file that cannot be read.
    """
    from pipeline.data.formats import column_advice, row_numbers

    shown = hide_passwords(source.path)
    samples = samples_of(source, known_first=contents is None)
    if not samples:
        return source
    columns = dict(source.columns)
    if contents is None:
        columns, contents = column_advice.fitted(columns, list(samples))
    elif contents == "judgments" or not {"title", "text"} & set(columns):  # A re-index keeps to the texts of its map.
        columns = column_advice.completed(columns, list(samples), contents)
    if not columns and (problem := column_advice.separator(list(samples))):
        raise SchemaError(f"{shown}: {problem}")
    if problem := column_advice.fault(columns, samples, contents, guessed=not source.columns):
        first = "" if columns or "://" in source.path else column_advice.first_line(Path(source.path))
        lines = "\n  ".join(filter(None, (f"{shown}: {problem}", first)))
        raise SchemaError(f"{lines}{_other_way(source, columns, contents)}")
    if "doc_id" not in source.columns and row_numbers.is_row_number(source, columns, Path()):
        del columns["doc_id"]
    if columns != dict(source.columns):
        kept = _to_filter_by(columns, list(samples)) if contents == "documents" else ""
        log.info("%s: %s%s", shown, _as_read(columns, list(samples), "--columns"), kept)
    return replace(source, columns=columns)


def with_usual_columns(source: SourceConfig) -> SourceConfig:
    """A recipe's source of documents, mapped by the names of its columns where it has no map and needs one."""
    from pipeline.data.formats import column_advice

    if source.columns or ("://" not in source.path and _is_known_file(source)):
        return source
    names = list(samples_of(source))
    columns = column_advice.guess(names, "documents")
    if not {"title", "text"} & set(columns):
        return source
    shown = hide_passwords(source.path)
    log.info("%s: %s", shown, _as_read(columns, names, "columns in the recipe's source"))
    return replace(source, columns=columns)


def _other_way(source: SourceConfig, columns: Mapping[str, str], contents: "Contents | None") -> str:
    """The lines on another way than a map for a table that lacks a part of judged data; empty without any."""
    from pipeline.data.formats import column_map

    judged, described = column_map.JUDGED & set(columns), {"title", "text"} & set(columns)
    if contents == "judgments" and described and not judged and "query" not in columns:
        return f"\n  {data_advice.without_judgments(source)}"
    return f"\n  {data_advice.ways_to_join(source, columns)}" if judged and not described else ""


def _as_read(columns: Mapping[str, str], names: Sequence[str], key: str) -> str:
    """A log line on a guessed column map: the columns read, the option that changes them, and the columns not read.

    Args:
        columns: the map.
        names: all columns of the table.
        key: the option or recipe key that sets a map.
    """
    from pipeline.data.formats import column_advice, option_text

    unread = [name for name in names if name.strip() and name not in columns.values()]
    most = column_advice.SHOWN_COLUMNS
    more = f", and {len(unread) - most:,} more" if len(unread) > most else ""
    left = f" (not read: {text.printable(', '.join(unread[:most]))}{more})" if unread else ""
    log_of = " (a click log)" if "clicked" in columns else ""
    return f"columns read as {option_text.option(columns)}{log_of}; {key} names others{left}"


def _to_filter_by(columns: Mapping[str, str], names: Sequence[str]) -> str:
    """The words on keeping a column that a guessed map of documents leaves out; empty where there is none."""
    from pipeline.data.formats import column_map, option_text

    free = (name for name in names if name.strip() and name not in columns.values())
    name = next((name for name in free if not column_map.role_meant(name, column_map.ROLES)), "")
    return f"; to filter by one, keep it: {option_text.option({name: name})}" if name else ""


def samples_of(source: SourceConfig, *, known_first: bool = False) -> dict[str, str]:
    """The columns of a table, each with a value; empty for what needs no map: a folder, a file of a known format."""
    from pipeline import storage
    from pipeline.data.formats import column_map, qrels_file, sql

    if storage.is_address(source.path) or source.format not in ("auto", "table", "sql"):
        return {}
    if "://" in source.path:
        samples = {} if source.query else sql.samples_of(source, Path())
        is_own = not source.columns and set(sql.OWN_COLUMNS) <= set(samples) and not _is_judged(samples)
        return {} if is_own else samples
    path = Path(source.path)
    if source.format == "sql" or not path.is_file() or path.suffix.lower() not in column_map.SUFFIXES:
        return _samples_of_alike(source) if source.format != "sql" and not source.columns else {}
    is_trec = source.format == "auto" and not source.columns and (qrels_file.is_qrels(path) or qrels_file.is_run(path))
    samples = column_map.samples_of(path, list(source.columns.values()))
    if source.columns and column_map.has_later_keys(path):
        samples |= {name: "" for name in source.columns.values() if name not in samples}  # Its reader sees all lines.
    if is_trec or not any(name.strip() for name in samples):
        return {}
    is_joined = path.suffix.lower() == ".parquet" and _is_judged(samples)
    is_known = known_first and not is_joined and _is_known_file(source)
    if source.columns or source.format == "table" or (column_map.suggest(list(samples)) and not is_known):
        return samples
    return {} if _is_known_file(source) else samples


def _samples_of_alike(source: SourceConfig) -> dict[str, str]:
    """The columns that the tables of a folder or a pattern share, where one map fits all of them; else empty.

    Empty too for a folder of a known format.
    """
    from pipeline.data.formats import column_map, trec_collection

    files = column_map.files_of(Path(source.path))
    is_part = bool(trec_collection.lacking(Path(source.path)))
    if not files or is_part or Path(source.path).is_file() or _is_known_file(source):
        return {}
    try:
        samples = [column_map.samples_of(file) for file in files]
    except RelevanceError:  # What is wrong with one file is said when the folder is read.
        return {}
    first, *later = samples
    maps = [column_map.suggest(list(columns)) for columns in samples]
    shared = {name: value for name, value in first.items() if all(name in columns for columns in later)}
    is_one = all(columns == maps[0] for columns in maps) and (bool(maps[0]) or len(shared) == len(first))
    return shared if is_one and column_map.suggest(list(shared)) == maps[0] else {}


def _is_judged(names: Collection[str]) -> bool:
    """Whether a table has a query and its judgment in each row, by the names of its columns."""
    from pipeline.data.formats import column_map

    best = column_map.suggest(list(names))
    return "query" in best and bool(column_map.JUDGED & set(best))


def _is_known_file(source: SourceConfig) -> bool:
    """Whether this is a file or folder of a format that needs no map of columns."""
    from pipeline.data.formats import registry

    return source.format == "auto" and any(known.find(source, Path()) for known in registry.FORMATS)
