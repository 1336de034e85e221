"""JSON files that do not hold one object a line: what each is, and the command that writes it so.

Lists, answers of search engines and exports of judgment tools each keep their rows somewhere below their top.
"""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import SchemaError
from pipeline.text import beside, counted

MOST_BYTES = 1 << 28
"""Size of a file above which its rows are not looked for, as that takes all of it into memory."""
HEAD_BYTES = 1 << 16
"""Bytes at the head of a file by which the export of a tool is known."""
MOST_LEVELS = 3
"""Levels of objects within objects in which a list of rows is looked for."""
LISTS_OF_ROWS = frozenset(
    ("hits.hits", "response.docs", "requests", "data", "docs", "documents", "items", "products", "records", "rows")
)
"""Paths by which an object of one line is known as the holder of a table's rows, and not as a row of its own."""
BULK_ACTIONS = frozenset({"index", "create"})
"""Keys of the lines that `_bulk` of Elasticsearch and OpenSearch has before each document."""

_BULK = "-n 'inputs as $action | input as $document | {_id: $action[]._id} + $document'"
_EXPORTS: Mapping[str, tuple[tuple[bytes, ...], str]] = {
    "of tasks as Label Studio exports them (its CSV is read as it is)": (
        (b'"annotations"', b'"was_cancelled"'),
        "'.[] | .data + {grade: (.annotations[] | select(.was_cancelled | not) | .result[0].value "
        "| .rating // .choices[0])}'",
    ),
    "of ratings as RRE has them": (
        (b'"relevant_documents"',),
        '\'.. | objects | select(has("relevant_documents")) | . as $group '
        "| ([.. | .placeholders? // empty | .[]] | first // $group.name) as $query "
        '| .relevant_documents | to_entries[] | . as $entry | if (.value | type) == "array" '
        "then .value[] | {query: $query, doc_id: ., grade: $entry.key} "
        "else {query: $query, doc_id: .key, grade: .value.gain} end'",
    ),
    "of ratings as Quepid exports them (its CSV is read as it is)": (
        (b'"queries"', b'"ratings"', b'"text"'),
        "'.queries[] | .text as $query | .ratings | to_entries[] | {query: $query, doc_id: .key, grade: .value}'",
    ),
}
"""Export of a tool, in words → the keys at its head, and the filter of `jq` that makes its rows."""


def fault_of_list(path: Path) -> SchemaError:
    """The error for a file that is one list."""
    what, rows = _export(path) or ("", "'.[]'")
    return _fault(path, f"list{what and f' {what}'}, not an object", rows)


def fault_of_long_object(path: Path, line: str) -> SchemaError | None:
    """The error for a file that begins with an object over several lines; None for any other.

    Args:
        line: its first line, which is no JSON.
    """
    content = _content(path) if line.lstrip().startswith("{") else None
    if line.strip() != "{" and not isinstance(content, dict):
        return None
    what, rows = _export(path) or ("", _rows(content) if isinstance(content, dict) else "'.'")
    return _fault(path, f"object{what and f' {what}'} over several lines", rows)


def fault_of_only_object(path: Path, row: Mapping[str, Any]) -> SchemaError | None:
    """The error for a file of one line that holds the rows of a table; None where it is a row itself."""
    if exported := _export(path):
        return _fault(path, f"object {exported[0]}", exported[1])
    by_column = len(row) > 1 and all(isinstance(cells, dict) and "0" in cells for cells in row.values())
    if by_column or row.keys() == {"columns", "index", "data"}:
        return SchemaError(
            f"{path}, line 1: a table as pandas writes it in one JSON object; write one object a line, with "
            '`frame.to_json(FILE, orient="records", lines=True)`'
        )
    lists = {name: count for name, count in _lists(row) if name in LISTS_OF_ROWS and count > 1}
    if not lists:
        return None
    return _fault(path, f"object with a list of {counted(max(lists.values()), 'object')}", _longest(lists))


def fault_of_action(path: Path, row: Mapping[str, Any]) -> SchemaError | None:
    """The error for a file that begins with an action of `_bulk`; None for any other."""
    action = next(iter(row.values())) if len(row) == 1 and set(row) <= BULK_ACTIONS else None
    if not isinstance(action, dict) or not all(key.startswith("_") for key in action):
        return None
    return _fault(path, "action of Elasticsearch's _bulk, whose document is the next line", _BULK)


def _fault(path: Path, what: str, rows: str) -> SchemaError:
    new = beside(path, f"{path.stem}-lines.jsonl")
    return SchemaError(
        f"{path}, line 1: a JSON {what}; write one object a line, for example with "
        f"`jq -c {rows} {shlex.quote(str(path))} > {new}`"
    )


def _export(path: Path) -> tuple[str, str] | None:
    """The entry of `_EXPORTS` that a file is, in words and as a filter."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    return next(((what, rows) for what, (keys, rows) in _EXPORTS.items() if all(key in head for key in keys)), None)


def _content(path: Path) -> Any:
    """All of a file as one value; None where it is none, or very large."""
    if path.stat().st_size > MOST_BYTES:
        return None
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def _rows(content: Mapping[str, Any]) -> str:
    """The filter for the longest list of objects below a value's top, or for the value itself."""
    lists = dict(_lists(content))
    return _longest(lists) if lists else "'.'"


def _longest(lists: Mapping[str, int]) -> str:
    return shlex.quote(f".{max(lists, key=lists.__getitem__)}[]")


def _lists(content: Mapping[str, Any], prefix: str = "", levels: int = MOST_LEVELS) -> Iterator[tuple[str, int]]:
    """Yields the path of each list of objects, and their number."""
    for key, value in content.items():
        if isinstance(value, dict) and levels > 1:
            yield from _lists(value, f"{prefix}{key}.", levels - 1)
        elif isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            yield f"{prefix}{key}", len(value)
