"""The locations of a table's rows as a person finds them: the line of a text file, or the number of the row from 1.

Every format of files says by `in_files` where its rows come from. Lines are counted only when a message needs them: the
file is then read once more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data.formats import separated_lines
from pipeline.schema import NameRows, row_name
from pipeline.text import read_lines


@dataclass(frozen=True, slots=True)
class FileRows:
    """Rows of a table that were read from one file, in its order."""

    file: Path
    count: int
    first_lines: Callable[[], Sequence[int]]
    """Counts the first line of each row, and of a row of names where the file has one; empty where it has no lines."""


def one_a_line(file: Path, count: int) -> FileRows:
    """The rows of a file whose every line is one, such as JSON lines or TREC qrels; blank lines are no rows."""
    return FileRows(file, count, lambda: [number for number, _ in read_lines(file)])


def separated(file: Path, count: int, delimiter: str | Callable[[], str] = ",", *, quoted: bool = True) -> FileRows:
    """The rows of a file of separated values.

    Args:
        count: the number of rows, that of names left out.
        delimiter: the separator, or what tells it.
        quoted: whether values may stand in quotes, and span lines.
    """

    def first_lines() -> Sequence[int]:
        mark = delimiter if isinstance(delimiter, str) else delimiter()
        return separated_lines.first_lines(file.read_bytes(), mark, quoted=quoted)

    return FileRows(file, count, first_lines)


def numbered(file: Path, count: int) -> FileRows:
    """The rows of a file that has no lines, such as Parquet."""
    return FileRows(file, count, list)


def in_files(parts: Sequence[FileRows], path: Path) -> NameRows:
    """Names for the rows of files that are read one after another.

    Args:
        parts: the rows of each file.
        path: the source's path; a file below it is named with its rows, the path itself is not.
    """
    ends = list(accumulate(part.count for part in parts))

    def name(rows: Sequence[int]) -> list[str]:
        lines: dict[int, Sequence[int]] = {}
        names = []
        for row in rows:
            number = int(np.searchsorted(ends, row, side="right"))
            part = parts[number]
            if number not in lines:
                lines[number] = _lines(part)
            inside = row - (ends[number] - part.count)
            location = f"line {lines[number][inside]:,}" if len(lines[number]) else row_name(inside)
            names.append(location if part.file == path else f"{_below(part.file, path)}, {location}")
        return names

    return name


def of_tables(located: Mapping[str, Sequence[FileRows]], path: Path) -> dict[str, NameRows]:
    """Table → names for its rows, from the rows of its files; see `in_files`."""
    return {table: in_files(parts, path) for table, parts in located.items() if parts}


def of_chosen(kept: pa.Array, locations: NameRows) -> NameRows:
    """Names for rows that were chosen from others, by the numbers that these had."""
    return lambda rows: locations(kept.take(pa.array(rows, pa.int64())).to_pylist())


def _below(file: Path, path: Path) -> str:
    """The name of a file in messages that name the source: from its folder on."""
    return str(file.relative_to(path)) if file.is_relative_to(path) else file.name


def _lines(part: FileRows) -> Sequence[int]:
    """The first line of each row of a file; empty where the lines cannot be told."""
    lines = part.first_lines()
    lines = lines[1:] if len(lines) == part.count + 1 else lines  # The first names the columns.
    return lines if len(lines) == part.count else []
