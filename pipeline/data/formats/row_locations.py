"""The locations of a table's rows as a person finds them: the line of a text file, or the number of the row from 1.

Lines are counted only when a message needs them: the file is then read once more.
"""

import csv
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from pipeline.data.formats.column_map import JSON_LINES, delimiter_of
from pipeline.schema import NameRows, row_name
from pipeline.text import read_lines


def in_files(files: Sequence[Path], counts: Sequence[int], wanted: Sequence[str]) -> NameRows:
    """Names for the rows of files that are read one after another, with the file's name where there are several.

    Args:
        files: the files, in their order.
        counts: the number of rows of each.
        wanted: names of columns that tell the separator; see `column_map.delimiter_of`.
    """
    ends = list(accumulate(counts))

    def name(rows: Sequence[int]) -> list[str]:
        lines: dict[int, list[int]] = {}
        names = []
        for row in rows:
            number = int(np.searchsorted(ends, row, side="right"))
            if number not in lines:
                lines[number] = _lines(files[number], counts[number], wanted)
            inside = row - (ends[number] - counts[number])
            location = f"line {lines[number][inside]:,}" if lines[number] else row_name(inside)
            names.append(f"{files[number].name}, {location}" if len(files) > 1 else location)
        return names

    return name


def _lines(file: Path, rows: int, wanted: Sequence[str]) -> list[int]:
    """The number of the first line of each row; empty where the lines cannot be told."""
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return []
    if suffix in JSON_LINES:
        lines = [number for number, _ in read_lines(file)]
    else:
        lines = _record_lines(file, delimiter_of(file, wanted))[1:]  # The first names the columns.
    return lines if len(lines) == rows else []


def _record_lines(file: Path, delimiter: str) -> list[int]:
    """The number of the first line of each record of a separated file; empty where a field is too long to tell."""
    with file.open(encoding="utf-8-sig", errors="replace", newline="\n") as stream:
        # A lone carriage return is no end of a row for the reader of such files, see `text_files`.
        records = csv.reader((line.rstrip("\r\n").replace("\r", " ") + "\n" for line in stream), delimiter=delimiter)
        starts, before = [], 0
        try:
            for record in records:
                if record:
                    starts.append(before + 1)
                before = records.line_num
        except csv.Error:
            return []
    return starts
