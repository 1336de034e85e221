"""TREC text files: qrels (query, iteration, document, grade) and runs (query, Q0, document, rank, score, system)."""

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from pipeline import disk
from pipeline.command_line import typed
from pipeline.data.formats import text_files
from pipeline.errors import SchemaError
from pipeline.schema import row_name
from pipeline.text import counted, read_lines, refuse_old_line_ends

OTHER_RUNS = "; a run is such lines with blanks or tabs between the fields, or Parquet with query_id, doc_id and score"
"""End of the message on a file that is neither, such as CSV or JSON."""

QRELS_LINE = "query iteration document grade"
"""The fields of a line of a qrels file."""
RUN_LINE = "query Q0 document rank score system"
"""The fields of a line of a run file."""


def is_qrels_line(fields: Sequence[str]) -> bool:
    """Whether these are the fields of a line of a qrels file."""
    return len(fields) == 4 and bool(re.fullmatch(r"[+-]?[0-9]+(\.0*)?", fields[3]))


def is_run_line(fields: Sequence[str]) -> bool:
    """Whether these are the fields of a line of a run file."""
    try:
        return len(fields) == 6 and math.isfinite(_integer(fields[3]) + _number(fields[4]))
    except ValueError:
        return False


def run_advice(path: Path) -> str:
    """The message that a file named as judgments is a run, and the command that judges it."""
    report = typed(f"report --run {shlex.quote(str(path))} --judgments QRELS")
    return f"{path}: is a TREC run file ({RUN_LINE}), which ranks documents and judges none. To judge it: `{report}`"


def _qrels_advice(path: Path) -> str:
    """The message that a file named as a run is one of judgments, and the command that judges a run by it."""
    report = typed(f"report --run RUN --judgments {shlex.quote(str(path))}")
    return (
        f"{path}: is a TREC qrels file ({QRELS_LINE}), which judges documents and ranks none. To judge a run by it: "
        f"`{report}`"
    )


def read_qrels(path: Path) -> pa.Table:
    """Judgments (query_id, doc_id, grade) of a qrels file; fields are separated by blanks or tabs.

    Raises:
        MissingError: no such file.
        SchemaError: the file is a run, or a line is without four fields or its grade is not a whole number; names the
            line.
    """
    queries: list[str] = []
    documents: list[str] = []
    grades: list[int] = []
    for number, fields in _fields(path, 4, QRELS_LINE):
        queries.append(fields[0])
        documents.append(fields[2])
        try:
            grades.append(_integer(re.sub(r"\.0*$", "", fields[3])))
        except ValueError as error:
            raise SchemaError(
                f"{path}, line {number}: grade '{fields[3]}' is not a whole number; a qrels line is '{QRELS_LINE}'"
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
        SchemaError: the file is one of qrels, or a line is without six fields, with a rank or score that is no number,
            or with the document and query of an earlier line of its system; names the line.
    """
    queries: list[str] = []
    documents: list[str] = []
    ranks: list[int] = []
    scores: list[float] = []
    systems: list[str] = []
    for number, (query, _, document, rank, score, system) in _fields(path, 6, RUN_LINE, OTHER_RUNS):
        queries.append(query)
        documents.append(document)
        systems.append(system)
        try:
            ranks.append(_integer(rank))
            scores.append(_number(score))
        except ValueError as error:
            raise SchemaError(
                f"{path}, line {number}: rank '{rank}' is no whole number, or score '{score}' no number; a run line is "
                f"'{RUN_LINE}'"
            ) from error
        if not math.isfinite(scores[-1]):
            raise SchemaError(f"{path}, line {number}: score '{score}' is not a finite number")
    run = pa.table(
        {
            "query_id": pa.array(queries, text_files.STRING),
            "doc_id": pa.array(documents, text_files.STRING),
            "rank": pa.array(ranks, pa.int64()),
            "score": pa.array(scores, pa.float64()),
            "system": pa.array(systems, text_files.STRING),
        }
    )
    _refuse_repeated(path, run)
    return run


def _refuse_repeated(path: Path, run: pa.Table) -> None:
    """Raises SchemaError if a system ranks a document twice for one query; names both lines."""
    keys = run.select(["query_id", "doc_id", "system"]).to_pandas()
    again = keys.duplicated().to_numpy()
    if not again.any():
        return
    row = int(again.argmax())
    first = int((keys == keys.iloc[row]).all(axis=1).to_numpy().argmax())
    lines = [number for number, _ in read_lines(path)]
    query, document, _ = keys.iloc[row]
    raise SchemaError(
        f"{path}, line {lines[row]}: document '{document}' of query '{query}' stands in line {lines[first]} already; "
        "keep one of them"
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


def _fields(path: Path, count: int, shape: str, advice: str = "") -> Iterator[tuple[int, list[str]]]:
    """(number, fields) of each line; `advice` ends the message on a line that has another number of fields."""
    for number, line in read_lines(path):
        fields = line.split()
        if len(fields) != count:
            if count == 4 and is_run_line(fields):
                raise SchemaError(run_advice(path))
            if count == 6 and is_qrels_line(fields):
                raise SchemaError(_qrels_advice(path))
            refuse_old_line_ends(path)
            raise SchemaError(
                f"{path}, line {number}: {counted(len(fields), 'field')}, not the {count} of '{shape}'{advice}"
            )
        yield number, fields


def _integer(text: str) -> int:
    """The whole number that a field holds; Python itself also reads `1_0`, and numbers that no column holds.

    Raises:
        ValueError: the field is no whole number, or has more than 18 digits.
    """
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError(text)
    return int(text)


def _number(text: str) -> float:
    """The number that a field holds, `inf` and `nan` included.

    Raises:
        ValueError: the field is no number, or is one to Python alone, such as `1_0`.
    """
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return float(text)


def _ids(table: pa.Table, column: str) -> list[str]:
    values: list[str] = table[column].to_pylist()
    for row, value in enumerate(values):
        if re.search(r"\s", value) or not value:
            raise SchemaError(
                f"{row_name(row)}: {column} '{value}' is empty or holds a blank; TREC files cannot carry it"
            )
    return values
