"""TREC text files: qrels (query, iteration, document, grade) and runs (query, Q0, document, rank, score, system)."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pipeline import disk
from pipeline.data.formats import text_files
from pipeline.errors import SchemaError
from pipeline.text import read_lines, refuse_old_line_ends


def read_qrels(path: Path) -> pa.Table:
    """Judgments (query_id, doc_id, grade) of a qrels file; fields are separated by blanks or tabs.

    Raises:
        MissingError: no such file.
        SchemaError: a line without four fields or whose grade is not a whole number; names the line.
    """
    queries: list[str] = []
    documents: list[str] = []
    grades: list[int] = []
    for number, fields in _fields(path, 4, "query iteration document grade"):
        queries.append(fields[0])
        documents.append(fields[2])
        try:
            grades.append(int(re.sub(r"\.0*$", "", fields[3])))
        except ValueError as error:
            raise SchemaError(
                f"{path}, line {number}: grade '{fields[3]}' is not a whole number; a qrels line is "
                "'query iteration document grade'"
            ) from error
    return pa.table(
        {
            "query_id": pa.array(queries, text_files.STRING),
            "doc_id": pa.array(documents, text_files.STRING),
            "grade": pa.array(grades, pa.int64()),
        }
    )


def read_run(path: Path) -> pa.Table:
    """The run in a file, in its order: query_id, doc_id, rank as written, score, system.

    Raises:
        MissingError: no such file.
        SchemaError: a line without six fields, or with a rank or score that is no number; names the line.
    """
    queries: list[str] = []
    documents: list[str] = []
    ranks: list[int] = []
    scores: list[float] = []
    systems: list[str] = []
    for number, (query, _, document, rank, score, system) in _fields(path, 6, "query Q0 document rank score system"):
        queries.append(query)
        documents.append(document)
        systems.append(system)
        try:
            ranks.append(int(rank))
            scores.append(float(score))
        except ValueError as error:
            raise SchemaError(
                f"{path}, line {number}: rank '{rank}' or score '{score}' is no number; a run line is "
                "'query Q0 document rank score system'"
            ) from error
        if not math.isfinite(scores[-1]):
            raise SchemaError(f"{path}, line {number}: score '{score}' is not a finite number")
    return pa.table(
        {
            "query_id": pa.array(queries, text_files.STRING),
            "doc_id": pa.array(documents, text_files.STRING),
            "rank": pa.array(ranks, pa.int64()),
            "score": pa.array(scores, pa.float64()),
            "system": pa.array(systems, text_files.STRING),
        }
    )


def write_run(run: pa.Table, path: Path) -> None:
    """Replaces `path` by a run file; scores are written so that they read back as the same numbers.

    Raises:
        SchemaError: an id or the system's name is empty or holds a blank.
    """
    columns = (
        _ids(run, "query_id"),
        _ids(run, "doc_id"),
        run["rank"].to_pylist(),
        run["score"].to_pylist(),
        _ids(run, "system"),
    )
    rows = zip(*columns, strict=True)
    disk.write_atomically(
        path, "".join(f"{q} Q0 {d} {rank} {score!r} {name}\n" for q, d, rank, score, name in rows), str
    )


def _fields(path: Path, count: int, shape: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(path):
        fields = line.split()
        if len(fields) != count:
            refuse_old_line_ends(path)
            raise SchemaError(f"{path}, line {number}: {len(fields)} fields, not the {count} of '{shape}'")
        yield number, fields


def _ids(table: pa.Table, column: str) -> list[str]:
    values: list[str] = table[column].to_pylist()
    for row, value in enumerate(values):
        if re.search(r"\s", value) or not value:
            raise SchemaError(f"row {row}: {column} '{value}' is empty or holds a blank; TREC files cannot carry it")
    return values
