"""Advice on data that lacks a part: documents without judgments, or judgments whose documents lie elsewhere."""

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import command_line
from pipeline.errors import RelevanceError
from pipeline.secrets import hide_passwords, secrets_as_variables

if TYPE_CHECKING:
    from pipeline.config import SourceConfig

PASSWORD = "DATABASE_PASSWORD"
"""Environment variable that a recipe names in the place of a database's password."""
MOST_TABLES = 20
"""Number of tables beside one that are looked at and named."""
_ID = re.compile(r"(?:^|[_\s-]|(?<=[a-z])(?=I))id$", re.IGNORECASE)


def without_judgments(source: "SourceConfig") -> str:
    """The sentence on documents without judgments: nothing can be trained, but a quickstart makes them searchable."""
    workspace = Path(os.environ.get("RELEVANCE_WORKSPACE") or command_line.DEFAULT_WORKSPACE)
    command = command_line.typed(f"quickstart {shlex.quote(hide_passwords(source.path))}", workspace)
    return (
        "of documents alone nothing can be trained or judged, as that takes judged queries or clicks; to search them "
        f"with a ready-made model: `{command} --workspace {shlex.quote(str(workspace))}`"
    )


def ways_to_join(source: "SourceConfig", columns: Mapping[str, str]) -> str:
    """The ways to read judgments with documents that stand in another table; names the tables that are there.

    Args:
        columns: the map of the judgments, as far as it is known.
    """
    own, neighbours = _columns_of(source), _neighbours(source)
    free = [name for name in own if name not in columns.values()]
    of_document = next((name for name in free if _ID.search(name)), "COLUMN")
    judged = {"doc_id": of_document} | {key: name for key, name in columns.items() if key not in ("title", "text")}
    path, documents = next(
        ((path, mapped) for path, mapped in neighbours.items() if {"title", "text"} & set(mapped)),
        (next(iter(neighbours), "PATH"), {"title": "COLUMN"}),
    )
    name = _collection(source)
    written = [
        _source(path, name, {"doc_id": "COLUMN"} | documents),
        _source(source.path, name, judged),
    ]
    is_database = "://" in source.path
    seen = f" (seen: {', '.join(map(_short, neighbours))})" if neighbours else ""
    join = (
        "\n  or join them in the database: make a view of both and name it as ?table=VIEW, or write a source with "
        'query = "SELECT …"'
    )
    return (
        f"where the texts of the documents stand in another {'table' if is_database else 'file'}{seen}, write a recipe "
        "with both as sources of one name, and `relevance init` fills in the rest:\n    [data]\n    sources = [\n"
        + "".join(f"      {line},\n" for line in written)
        + "    ]"
        + join * is_database
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
    """The other tables of a database, or the other table files of a folder → the map of their documents by name."""
    from pipeline.data.formats import column_advice, column_map, sql

    if "://" in source.path:
        paths = sql.other_tables(source.path, Path())[:MOST_TABLES]
    else:
        file = Path(source.path)
        paths = [str(other) for other in column_map.files_of(file.parent) if other != file][:MOST_TABLES]
    return {
        path: column_advice.guess(_columns_of(replace(source, path=path, columns={}, query="")), "documents")
        for path in paths
    }


def _source(path: str, name: str, columns: Mapping[str, str]) -> str:
    """A source as a recipe has it, without a password."""
    from pipeline.data.formats import option_text

    hidden, _ = secrets_as_variables(path, PASSWORD)
    mapped = ", ".join(f"{option_text.toml_key(key)} = {_quoted(column)}" for key, column in columns.items())
    return f"{{ path = {_quoted(hidden)}, name = {_quoted(name)}, columns = {{ {mapped} }} }}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _collection(source: "SourceConfig") -> str:
    """A name for the collection that a table belongs to: that of its database, or of its folder."""
    if "://" in source.path:
        from pipeline.data.formats import sql

        return sql.database_name(source.path)
    return Path(os.path.realpath(source.path)).parent.name or "own"


def _short(path: str) -> str:
    """A table's name, or a file's."""
    if "://" in path:
        from pipeline.data.formats import sql

        return sql.short_name(path)
    return Path(path).name
