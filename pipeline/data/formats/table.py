"""Reads a user's own tables: CSV, TSV, JSON lines or Parquet, one file or several, by a map of their columns.

    { path = "ratings.csv", columns = { query = "query", title = "product_title", grade = "relevance" } }

A path is a file, a folder, or a pattern such as `ratings-*.csv`. What a table gives follows from the keys of the map:
texts of documents (title, text), queries (query), and with a grade the judgments of the pairs. Ids that the map does
not name are made from the texts. Unmapped columns are not read; any other key keeps a column of the documents.

    { path = "clicks.csv", columns = { query = "query", title = "title", position = "rank", clicked = "clicked" } }

With `positive` and `negative` a row holds texts that are relevant to its query, and texts that are not; of a list of
texts and a list of grades each text has its grade: see `document_lists`.

With `clicked` the rows are a click log, from which `pipeline.data.clicks` makes the judgments.
"""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import text
from pipeline.config import SourceConfig
from pipeline.data.clicks import impressions, weak_judgments
from pipeline.data.formats import (
    column_advice,
    document_lists,
    mapped_grades,
    nested,
    parquet_reader,
    row_locations,
    separated_files,
    tables,
    text_files,
)
from pipeline.data.formats.column_map import (
    JSON_LINES,
    SUFFIXES,
    delimiter_of,
    files_of,
    role_meant,
    roles,
    samples_of,
)
from pipeline.data.formats.row_locations import FileRows
from pipeline.data.formats.tables import FoundSource, Tables
from pipeline.data.formats.text_files import STRING
from pipeline.errors import ConfigError, MissingError, SchemaError
from pipeline.schema import NameRows, row_names

log = logging.getLogger(__name__)


def find(config: SourceConfig, root: Path) -> FoundSource | None:
    """The table that a recipe maps; see `tables.Format`.

    Raises:
        ConfigError: the format is table and no columns are mapped; the message has the map that would fit best.
        MissingError: no such file.
    """
    if "://" in config.path or not (config.columns or config.format == "table"):
        return None
    path = root / config.path
    files = files_of(path)
    if not files:
        raise MissingError(f"{path}: no such table; name a file, a folder or a pattern of {', '.join(SUFFIXES)} files")
    if not config.columns:
        raise ConfigError(f"{path}: format 'table' needs a map of columns{column_advice.of_file(path)}")
    name = tables.name_of(path if path.exists() else path.parent)
    return FoundSource(
        name, str(path), lambda: tables.digest_of("table", files_of(path)), lambda: read(files_of(path), config)
    )


def read(files: Sequence[Path], config: SourceConfig) -> Tables:
    """Reads mapped files as one table, their rows one after another: its documents, queries and judgments.

    Raises:
        ConfigError: the map makes no documents, queries or judgments.
        SchemaError: a column that a file lacks, a value that is no text, grades that are words without `labels`.
    """
    parts = [_read_file(file, config.columns) for file in files]
    try:
        rows = pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise SchemaError(f"{files[0].parent}: the tables have columns of different types ({error})") from error
    path = files[0] if len(files) == 1 else files[0].parent
    wanted = list(config.columns.values())
    located = [_file_rows(file, part.num_rows, wanted) for file, part in zip(files, parts, strict=True)]
    return assemble(rows, config, str(path), row_locations.in_files(located, path))


def assemble(rows: pa.Table, config: SourceConfig, shown: str, locations: NameRows = row_names) -> Tables:
    """The documents, queries and judgments from rows whose columns are named by their role, such as `query`.

    Args:
        rows: ids, texts and grades as texts without nulls, or lists of such; other columns of any type.
        shown: the source's address, for messages.
        locations: the locations of the rows in their files, for messages.

    Raises:
        ConfigError: no table can be made from the mapped keys, or one of them is missing or unknown.
        SchemaError: grades that are words without `labels`, or a row with another number of texts than of grades.
    """
    _check_keys(set(rows.column_names), shown)
    rows, locations = document_lists.opened(rows, locations, shown)
    names = set(rows.column_names)
    graded, queried, described = "grade" in names, "query" in names, bool(names & {"title", "text"})
    logged = _is_click_log(names, shown)
    if not rows.num_rows:
        return Tables()  # `sources.read` refuses a source without rows.
    extra = [name for name in rows.column_names if name not in roles(names)]
    columns = _with_ids(rows, logged=logged)
    _check_parts(names, columns, config, shown)
    tables_read: dict[str, Any] = {}
    named: dict[str, NameRows] = {"judgments": locations} if graded else {}
    if described:
        documents = {name: columns[name] for name in ("doc_id", "title", "text")}
        documents |= {name: columns[name] for name in extra}
        # An id with two texts keeps both of them.
        tables_read["documents"], named["documents"] = tables.first_of(
            pa.table(documents), "doc_id", "title", "text", locations=locations
        )
    if queried:
        queries = {"query_id": columns["query_id"], "text": columns["query"]}
        tables_read["queries"], named["queries"] = tables.first_of(
            pa.table(queries), "query_id", "text", locations=locations
        )
    if graded:
        tables_read |= _graded(columns, config, shown)
    if logged:
        keys = [key for key in ("query_id", "doc_id", *impressions.ROLES) if key in columns]
        judged = weak_judgments.judge(pa.table({key: columns[key] for key in keys}), config, shown, locations)
        tables_read |= {"judgments": judged.judgments, "clicks": judged.stats}
    return Tables(**tables_read, locations=named)


def _with_ids(rows: pa.Table, *, logged: bool) -> dict[str, pa.ChunkedArray]:
    """The columns by role, with those that rows of queries or documents lack: ids made from the texts, blank texts.

    Args:
        logged: whether the rows are a click log, in which spellings of one query are one query.
    """
    columns = {name: rows[name] for name in rows.column_names}
    if "query" in columns:
        if logged and "query_id" not in columns:
            columns["query"] = impressions.usual_spelling(columns["query"])
        columns.setdefault("query_id", pa.chunked_array([tables.ids("q", columns["query"])]))
    if {"title", "text"} & set(columns):
        for name in ("title", "text"):
            columns.setdefault(name, tables.all_the_same("", rows.num_rows))
        columns.setdefault("doc_id", pa.chunked_array([tables.ids("d", columns["title"], columns["text"])]))
    return columns


def _check_parts(names: set[str], columns: Collection[str], config: SourceConfig, shown: str) -> None:
    """Checks that the mapped keys make tables of documents, queries or judgments.

    Args:
        names: the mapped keys.
        columns: the mapped keys, and the ids that were made from their texts.

    Raises:
        ConfigError: they make no table, or judgments without a query or a document.
    """
    judged = {"grade", "clicked"} & names
    if judged and not {"query_id", "doc_id"} <= set(columns):
        lacking = "query or query_id" if "query_id" not in columns else "title, text or doc_id"
        what = "clicked" if "clicked" in judged else "a grade"
        raise ConfigError(f"{shown}: columns maps {what}, but not {lacking}; it belongs to a query and a document")
    if config.labels and "grade" not in names:
        raise ConfigError(f"{shown}: labels give grades to words, but columns maps no grade; map its column too")
    if not judged and not names & {"query", "title", "text"}:
        raise ConfigError(
            f"{shown}: columns maps {', '.join(sorted(names))}; map a query, a title or a text, and a grade"
        )


def _graded(columns: Mapping[str, pa.ChunkedArray], config: SourceConfig, shown: str) -> dict[str, Any]:
    """The fields of `Tables` that come from a column of grades: the judgments, their faults, and advice on these.

    Args:
        columns: role → column; query_id, doc_id and grade are among the roles.
        shown: the source's address, for messages.
    """
    grades = mapped_grades.read(columns["grade"], config, shown)
    judgments = {"query_id": columns["query_id"], "doc_id": columns["doc_id"], "grade": grades.grades}
    judgments["split"] = (
        tables.splits(columns["split"]) if "split" in columns else tables.all_the_same(None, len(columns["grade"]))
    )
    if "source" in columns:
        judgments["source"] = columns["source"]
    return {"judgments": pa.table(judgments), "faults": tuple(grades.faults), "advice": grades.advice}


def _is_click_log(keys: Collection[str], shown: str) -> bool:
    """Whether a map of columns is that of a click log, after a check that its keys go together."""
    if "clicked" not in keys:
        return False
    beside = [key for key in ("grade", "split", "source") if key in keys]
    if beside:
        raise ConfigError(f"{shown}: columns maps clicked and {', '.join(beside)}; map one of both")
    if "position" not in keys:
        raise ConfigError(f"{shown}: columns maps clicked, but no position; clicks mean little without it, map both")
    return True


def _read_file(file: Path, columns: Mapping[str, str]) -> pa.Table:
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
        else parquet_reader.read_foreign(file, wanted)
    )
    known = roles(columns)
    cells = {
        role: _text(rows[name], role, f"{file}: column {name!r}") if role in known else rows[name]
        for role, name in columns.items()
    }
    return pa.table(cells)


def _file_rows(file: Path, count: int, wanted: Sequence[str]) -> FileRows:
    """The rows of one file, to be named in messages; `wanted` are the names of its mapped columns."""
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return row_locations.numbered(file, count)
    if suffix in JSON_LINES:
        return row_locations.one_a_line(file, count)
    return row_locations.separated(file, count, lambda: delimiter_of(file, wanted))


def _text(values: pa.ChunkedArray, role: str, shown: str) -> pa.ChunkedArray:
    """The column of a role as text, or as lists of texts; null becomes an empty string.

    Args:
        values: the column.
        role: the key of the map that names it.
        shown: the file and the column, for messages.
    """
    is_listed = role in document_lists.LISTED and nested.is_list(values.type)
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
    """Ids as whole numbers, which pandas writes as floats where one of them is missing."""
    try:
        return pc.cast(values, pa.int64())
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
    has_lists = is_text and any(isinstance(cell, list) for cell in cells)
    try:
        if has_lists:
            return pa.array([_entries(cell) for cell in cells], pa.list_(STRING))
        return pa.array(cells, STRING) if is_text else pa.array(cells)
    except UnicodeEncodeError as error:
        faults = (next(filter(None, map(text.fault, _entries(cell))), None) for cell in cells)
        index, reason = next(((index, fault) for index, fault in enumerate(faults) if fault), (0, str(error)))
        (location,) = row_locations.in_files([row_locations.one_a_line(file, len(cells))], file)([index])
        raise SchemaError(f"{file}, {location}: the {role} {reason}") from error
    except pa.ArrowException as error:
        raise SchemaError(f"{file}: the column for {role} has values of different kinds ({error})") from error


def _entries(cell: Any) -> list[str]:
    """The texts of a list; of a text the text itself, and none of an empty one."""
    if isinstance(cell, list):
        return [entry for entry in cell if isinstance(entry, str)]
    return [cell] if cell and isinstance(cell, str) else []


def _json_text(value: Any, role: str) -> str | list[str] | None:
    """The text or texts of a JSON value for a role; None where the value is of a type that the role does not take."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and role in document_lists.LISTED:
        entries = [_json_text(entry, role) for entry in value]
        return [entry for entry in entries if isinstance(entry, str)] if None not in entries else None
    if value is None:
        return None if role in impressions.ROLES else ""  # Of an id, a query or a grade, that is a fault of its row.
    if isinstance(value, bool):
        return str(value).lower() if role in ("clicked", "grade") else None
    number = isinstance(value, (int, float) if role in ("grade", *impressions.ROLES) else int)
    return str(value) if number and role in ("query_id", "doc_id", "grade", *impressions.ROLES) else None


def _check_keys(names: set[str], shown: str) -> None:
    """Refuses a key that would keep a column of the documents, but looks like a misspelt role.

    Raises:
        ConfigError: names the key and the role.
    """
    known = roles(names)
    for key in sorted(names - set(known)):
        meant = role_meant(key, known)
        if meant and meant not in names:
            raise ConfigError(
                f"{shown}: columns has the key '{key}', which is none of {', '.join(known)}; did you mean "
                f"'{meant}'? A key that only keeps a column of the documents needs another name"
            )
