"""Readers of text files of JSON lines, and the type of texts in tables; every error names the file and the line."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.formats import json_shapes
from pipeline.errors import MissingError, SchemaError
from pipeline.text import read_lines, refuse_old_line_ends

STRING = pa.large_string()
"""The type of ids and texts in tables."""

log = logging.getLogger(__name__)


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, object) of each line of a JSON lines file.

    Raises:
        MissingError: no such file.
        SchemaError: not UTF-8, or a line that is not a JSON object.
    """
    number, first = 0, None
    for number, line in read_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == 1 and line.lstrip().startswith("["):
                raise json_shapes.fault_of_list(path) from error
            if number == 1 and (longer := json_shapes.fault_of_long_object(path, line)):
                raise longer from error
            refuse_old_line_ends(path)
            raise SchemaError(
                f"{path}, line {number}: not JSON ({error}); each line must be one object, is the file cut off?"
            ) from error
        if isinstance(row, list) and number == 1:
            raise json_shapes.fault_of_list(path)
        if not isinstance(row, dict):
            raise SchemaError(f"{path}, line {number}: a JSON {type(row).__name__}, not an object")
        if number == 1 and (action := json_shapes.fault_of_action(path, row)):
            raise action
        first = row if number == 1 else None
        yield number, row
    if not number:
        say_empty(path)
    if first and (holder := json_shapes.fault_of_only_object(path, first)):
        raise holder


def first_keys(path: Path) -> set[str]:
    """The keys of the first object of a JSON lines file; empty where the file is not of that kind, or not there."""
    try:
        return set(next(json_lines(path), (0, {}))[1])
    except (SchemaError, MissingError):
        return set()


def is_utf8(path: Path) -> bool:
    """Whether all of a file is UTF-8."""
    try:
        for _ in read_lines(path):
            pass
    except SchemaError:
        return False
    return True


def say_empty(path: Path, where: str = "") -> None:
    """Logs a warning that a data file has no rows; the caller decides whether that is an error."""
    log.warning("%s: has no rows%s", path, where and f" {where}")
