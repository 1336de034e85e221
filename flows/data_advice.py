"""Advice on data that lacks a part: documents without judgments, or judgments whose documents lie elsewhere."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import command_line
from pipeline.errors import RelevanceError
from pipeline.secrets import hide_passwords

if TYPE_CHECKING:
    from pipeline.config import SourceConfig


JOIN_IN_DATABASE = (
    "\n  or join them in the database: make a view of both and name it as ?table=VIEW, or write a source with "
    'query = "SELECT …"'
)
"""The other way to read documents and judgments of one database together."""
_IDS_SUFFICE = "a report has the texts from the release, if a column holds the documents' ids:"


def without_judgments(source: "SourceConfig") -> str:
    """The sentence on documents without judgments: nothing can be trained, but a quickstart makes them searchable."""
    workspace = shlex.quote(str(command_line.default_workspace()))
    command = command_line.typed(f"quickstart {shlex.quote(hide_passwords(source.path))}")
    return (
        "of documents alone nothing can be trained or judged, as that takes judged queries or clicks; to search them "
        f"with a ready-made model: `{command} --workspace {workspace}`"
    )


def ways_to_join(source: "SourceConfig", columns: Mapping[str, str]) -> str:
    """The ways to read judgments with documents that stand in another table; names the tables that are there.

    Args:
        columns: the map of the judgments, as far as it is known.
    """
    from pipeline.data.formats import column_advice, option_text

    judged = {**column_advice.judged_or_described(_columns_of(source)), **columns}
    ids = {"doc_id": judged.get("doc_id", "COLUMN")}
    judged = {**ids, **{key: name for key, name in judged.items() if key not in ("title", "text", "doc_id")}}
    neighbours, name = _neighbours(source), _collection(source)
    contents = {path: column_advice.contents_of(mapped) for path, mapped in neighbours.items()}
    documents = {path: mapped for path, mapped in neighbours.items() if contents[path] == "documents"}
    path = next(iter(documents or neighbours), "PATH")
    tables = [(path, name, {"doc_id": "COLUMN", **documents.get(path, {"title": "COLUMN"})})]
    if "query" not in judged:  # Their texts lie elsewhere too.
        tables += [(path, name, mapped) for path, mapped in neighbours.items() if contents[path] is None]
    written = column_advice.sources([*tables, (source.path, name, judged)])
    is_database = "://" in source.path
    seen = f" (seen: {', '.join(map(_short, neighbours))})" if neighbours else ""
    known = {key: columns[key] for key in columns if key not in ("title", "text")} | ids
    report = "" if "doc_id" in columns else f"{_IDS_SUFFICE} --columns {shlex.quote(option_text.option(known))}\n  "
    container = "table" if is_database else "file"
    return (
        f"{report}where the texts of the documents stand in another {container}{seen}, write a "
        "recipe with these as sources of one name, and `relevance init RECIPE` fills in the rest:\n"
        + written
        + (JOIN_IN_DATABASE if is_database else "")
    )


def _columns_of(source: "SourceConfig") -> list[str]:
    """The names of a table's columns; none where they cannot be read."""
    from pipeline.data.formats import column_map, sql

    try:
        if "://" in source.path:
            return list(sql.samples_of(source, Path()))
        return [name for file in column_map.files_of(Path(source.path))[:1] for name in column_map.samples_of(file)]
    except (RelevanceError, OSError):
        return []


def _neighbours(source: "SourceConfig") -> dict[str, dict[str, str]]:
    """The other tables of a database, or the files of a folder that hold documents or queries → the map of each."""
    from pipeline.data.formats import column_advice, column_map, sql

    if "://" in source.path:
        paths = sql.other_tables(source.path, Path())[: column_advice.MOST_TABLES]
    else:
        file = Path(source.path)
        paths = [str(other) for other in column_map.files_of(file.parent) if other != file][: column_advice.MOST_TABLES]
    maps = {
        path: column_advice.guess(_columns_of(replace(source, path=path, columns={}, query="")), None) for path in paths
    }
    is_database = "://" in source.path
    return {
        path: mapped
        for path, mapped in maps.items()
        if is_database or column_advice.contents_of(mapped) in ("documents", None)
    }


def _collection(source: "SourceConfig") -> str:
    """A name for the collection that a table belongs to: that of its database, or of its folder."""
    if "://" in source.path:
        from pipeline.data.formats import sql_address

        return sql_address.database_name(source.path)
    return Path(os.path.realpath(source.path)).parent.name or "own"


def _short(path: str) -> str:
    """A table's name, or a file's."""
    if "://" in path:
        from pipeline.data.formats import sql_address

        return sql_address.short_name(path)
    return Path(path).name
