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

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import SourceConfig
from pipeline.data.clicks import impressions, weak_judgments
from pipeline.data.formats import (
    column_advice,
    document_lists,
    mapped_columns,
    mapped_grades,
    row_locations,
    tables,
)
from pipeline.data.formats.column_map import (
    JUDGED,
    SUFFIXES,
    files_of,
    left_out,
    refuse_dangling,
    role_meant,
    roles,
)
from pipeline.data.formats.tables import FoundSource, Tables
from pipeline.errors import ConfigError, MissingError, SchemaError
from pipeline.schema import InvalidRow, NameRows, row_names

log = logging.getLogger(__name__)


def find(config: SourceConfig, root: Path) -> FoundSource | None:
    """The table that a recipe maps; see `tables.Format`.

    Raises:
        ConfigError: the format is table and no columns are mapped; the message has the map that would fit best.
        MissingError: no such file, or a link in the folder to a table that is not there.
    """
    if "://" in config.path or not (config.columns or config.format == "table"):
        return None
    path = root / config.path
    refuse_dangling(path)
    files = files_of(path)
    if not files:
        raise MissingError(f"{path}: no such table; name a file, a folder or a pattern of {', '.join(SUFFIXES)} files")
    if not config.columns:
        raise ConfigError(f"{path}: format 'table' needs a map of columns{column_advice.of_file(path)}")
    name = tables.name_of(path if path.exists() else path.parent)
    return FoundSource(
        name, str(path), lambda: tables.digest_of("table", files_of(path)), lambda: _read_all(path, config)
    )


def _read_all(path: Path, config: SourceConfig) -> Tables:
    """The tables at a path as `read` gives them; a warning names what else in a folder looks like data."""
    if left := left_out(path):
        log.warning(
            "%s: its tables alone are read, and not %s; unpack, save or name what belongs to them",
            path,
            ", ".join(left),
        )
    return read(files_of(path), config)


def read(files: Sequence[Path], config: SourceConfig) -> Tables:
    """Reads mapped files as one table, their rows one after another: its documents, queries and judgments.

    Raises:
        ConfigError: the map makes no documents, queries or judgments.
        SchemaError: a column that a file lacks, a value that is no text, grades that are words without `labels`.
    """
    parts = [mapped_columns.read(file, config.columns) for file in files]
    rows = as_one(parts, files)
    path = files[0] if len(files) == 1 else files[0].parent
    wanted = list(config.columns.values())
    located = [mapped_columns.rows_of(file, part.num_rows, wanted) for file, part in zip(files, parts, strict=True)]
    return assemble(rows, config, str(path), row_locations.in_files(located, path))


def as_one(parts: Sequence[pa.Table], files: Sequence[Path]) -> pa.Table:
    """The mapped columns of several files as one table, their rows one after another.

    Raises:
        SchemaError: a column has other types in other files.
    """
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise SchemaError(f"{files[0].parent}: the tables have columns of different types ({error})") from error


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
        if JUDGED & names and "doc_id" not in names:
            tables_read["faults"] = _without_texts(tables_read["documents"])
    if queried:
        queries = {"query_id": columns["query_id"], "text": columns["query"]}
        tables_read["queries"], named["queries"] = tables.first_of(
            pa.table(queries), "query_id", "text", locations=locations
        )
    if graded:
        graded_rows = _graded(columns, config, shown)
        tables_read |= graded_rows | {"faults": (*tables_read.get("faults", ()), *graded_rows["faults"])}
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


def _without_texts(documents: pa.Table) -> tuple[InvalidRow, ...]:
    """A fault for the document of judged rows that have neither a text nor an id: nothing tells what was judged."""
    blank = pc.and_(*(pc.equal(pc.utf8_trim_whitespace(documents[name]), "") for name in ("title", "text")))
    reason = "title and text are empty, and no column is mapped as doc_id; nothing tells which document is meant"
    return tuple(InvalidRow("documents", row, reason) for row in pc.indices_nonzero(blank).to_pylist())


def _check_parts(names: set[str], columns: Collection[str], config: SourceConfig, shown: str) -> None:
    """Checks that the mapped keys make tables of documents, queries or judgments.

    Args:
        names: the mapped keys.
        columns: the mapped keys, and the ids that were made from their texts.

    Raises:
        ConfigError: they make no table, or judgments without a query or a document.
    """
    judged = JUDGED & names
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
    """The fields of `Tables` from a column of grades: the judgments, their faults, advice on these, and the scale.

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
    table = pa.table(judgments)
    return {"judgments": table, "faults": tuple(grades.faults), "advice": grades.advice, "scale": grades.scale}


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
