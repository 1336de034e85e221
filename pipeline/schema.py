"""The tables that stages exchange: columns, types, grade scale; checks that name the row and the reason.

documents   doc_id, title, text           + updated_at, upvotes, downvotes, any other column kept
queries     query_id, text                + weight (share of traffic), slice (a name to report by)
judgments   query_id, doc_id, grade       + source (human, page, click, model, …), split, field
run         query_id, doc_id, rank, score, system
clicks      session_id, query, doc_id, position, clicked, timestamp
pairs       row_id, query_id, doc_id, grade, split, source
scores      row_id, score
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import text
from pipeline.errors import MissingError, SchemaError
from pipeline.text import counted

if TYPE_CHECKING:
    import pyarrow as pa

MAX_GRADE = 10
"""The highest grade; a larger number is almost surely another column."""

SPLITS = ("train", "valid", "test")

UNLABELLED = "unlabelled"
"""The split of pairs without a grade, on which students learn from the teacher's scores."""

NO_GRADE = -1
"""The grade of pairs without a grade."""

_GRADE = re.compile(r"0*([0-9]{1,2})")

ColumnType = Literal["string", "int", "float", "bool", "any"]


def grade_of(digits: str) -> int | None:
    """The grade that this text is, from 0 to MAX_GRADE; None for any other text, such as a number of many digits."""
    match = _GRADE.fullmatch(digits)
    return grade if match and (grade := int(match[1])) <= MAX_GRADE else None


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    name: str
    type: ColumnType
    required: bool = True


TABLES: dict[str, tuple[Column, ...]] = {
    "documents": (
        Column("doc_id", "string"),
        Column("title", "string"),
        Column("text", "string"),
        Column("updated_at", "any", required=False),
        Column("upvotes", "int", required=False),
        Column("downvotes", "int", required=False),
    ),
    "queries": (
        Column("query_id", "string"),
        Column("text", "string"),
        Column("weight", "float", required=False),
        Column("slice", "string", required=False),
    ),
    "judgments": (
        Column("query_id", "string"),
        Column("doc_id", "string"),
        Column("grade", "int"),
        Column("source", "string", required=False),
        Column("split", "string", required=False),
        Column("field", "string", required=False),
    ),
    "run": (
        Column("query_id", "string"),
        Column("doc_id", "string"),
        Column("rank", "int"),
        Column("score", "float"),
        Column("system", "string"),
    ),
    "clicks": (
        Column("session_id", "string"),
        Column("query", "string"),
        Column("doc_id", "string"),
        Column("position", "int"),
        Column("clicked", "bool"),
        Column("timestamp", "any"),
    ),
    "pairs": (
        Column("row_id", "int"),
        Column("query_id", "string"),
        Column("doc_id", "string"),
        Column("grade", "int"),
        Column("split", "string"),
        Column("source", "string"),
    ),
    "scores": (Column("row_id", "int"), Column("score", "float")),
}


def row_name(row: int) -> str:
    """The name of a row in messages, where rows are numbered from 1.

    Args:
        row: its number from 0.
    """
    return f"row {row + 1}"


NameRows = Callable[[Sequence[int]], list[str]]
"""Names of rows for messages, from their numbers from 0."""


def row_names(rows: Sequence[int]) -> list[str]:
    """The names of rows that stand in no text file, whose lines would say more."""
    return [row_name(row) for row in rows]


@dataclass(frozen=True, slots=True)
class InvalidRow:
    """A row, or a whole table, that cannot be used."""

    table: str
    row: int | None
    """Number of the row in its table, from 0; None means the whole table."""
    reason: str
    location: str = field(default="", repr=False)
    """The location of the row in its file, such as "line 17"; empty where only its number is known."""

    @property
    def where(self) -> str:
        """The location of the row, or its name; empty for a whole table."""
        return "" if self.row is None else self.location or row_name(self.row)

    def __str__(self) -> str:
        return f"{self.table}: {self.reason}" if self.row is None else f"{self.table}, {self.where}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """The fault as plain values, for JSON; rows are numbered from 1."""
        row = None if self.row is None else self.row + 1
        return {"table": self.table, "row": row, "where": self.where, "reason": self.reason}


def _matches(kind: "pa.DataType", wanted: ColumnType) -> bool:
    import pyarrow.types as t

    if wanted == "string":
        return bool(t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind))
    if wanted == "int":
        return bool(t.is_integer(kind))
    if wanted == "float":
        return bool(t.is_floating(kind) or t.is_integer(kind))
    return wanted == "any" or bool(t.is_boolean(kind))


def column_faults(table: "pa.Table", kind: str) -> list[InvalidRow]:
    """Missing columns, wrong types and nulls in required columns; empty when the contract is kept."""
    faults = []
    for column in TABLES[kind]:
        if column.name not in table.column_names:
            if column.required:
                faults.append(InvalidRow(kind, None, f"has no column '{column.name}'; it has {table.column_names}"))
            continue
        values = table.column(column.name)
        if not _matches(values.type, column.type):
            faults.append(InvalidRow(kind, None, f"column '{column.name}' is {values.type}, not {column.type}"))
        elif column.required and values.null_count:
            row = values.is_null().to_pylist().index(True)
            faults.append(
                InvalidRow(kind, row, f"column '{column.name}' is null ({counted(values.null_count, 'row')})")
            )
    return faults


def text_faults(table: "pa.Table", kind: str) -> Iterator[InvalidRow]:
    """Rows whose id or texts hold NUL or more than `text.MAX_CHARS` characters; empty queries too.

    A lone surrogate cannot be in a table: readers find it before.
    """
    import pyarrow.compute as pc

    for name in ("query_id", "doc_id", "title", "text"):
        if name in table.column_names:
            values = table.column(name)
            suspect = pc.or_(pc.greater(pc.utf8_length(values), text.MAX_CHARS), pc.match_substring(values, "\x00"))
            may_be_empty = kind != "queries" or name != "text"
            if not may_be_empty:
                suspect = pc.or_(suspect, pc.equal(pc.utf8_trim_whitespace(values), ""))
            for row in pc.indices_nonzero(pc.fill_null(suspect, not may_be_empty)).to_pylist():
                reason = text.fault(values[row].as_py() or "")
                yield InvalidRow(kind, row, f"{name} {reason}" if reason else "the query is empty")


def grade_faults(table: "pa.Table") -> Iterator[InvalidRow]:
    """Judgments whose grade is outside 0..MAX_GRADE or whose split is unknown."""
    for row, grade in enumerate(table.column("grade").to_pylist()):
        if not 0 <= grade <= MAX_GRADE:
            yield InvalidRow("judgments", row, f"grade {grade} is outside 0..{MAX_GRADE}")
    if "split" in table.column_names:
        for row, split in enumerate(table.column("split").to_pylist()):
            if split is not None and split not in SPLITS:
                yield InvalidRow("judgments", row, f"split '{split}' is none of {', '.join(SPLITS)}")


def read(path: Path, kind: str) -> "pa.Table":
    """The Parquet table at `path`, held to the contract of `kind`.

    Raises:
        MissingError: no such file.
        SchemaError: not Parquet, a column missing or of another type, a null where a value must be, text that is not
            UTF-8.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise MissingError(f"{path}: no such file; a table of {kind} was expected here")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"{path}: not a readable Parquet file ({error}); write it again") from error
    faults = column_faults(table, kind)
    if faults:
        raise SchemaError(f"{path}: " + "; ".join(str(fault) for fault in faults))
    refuse_invalid_text(table, path)
    return table


def refuse_invalid_text(table: "pa.Table", path: Path) -> None:
    """Raises `SchemaError` where a text, or one in a list or a struct, is not UTF-8, which Parquet does not promise."""
    import pyarrow as pa

    for number, column in enumerate(table.schema):
        if _matches(column.type, "string") or pa.types.is_nested(column.type):
            try:
                table[number].validate(full=True)
            except pa.ArrowInvalid as error:
                raise SchemaError(
                    f"{path}: column '{column.name}' holds text that is not UTF-8 ({error}); write the file again with "
                    "that column converted to UTF-8"
                ) from error


def write(table: "pa.Table", path: Path, kind: str) -> None:
    """Writes a table as zstd Parquet after checking it against its contract.

    Raises:
        SchemaError: the table does not keep the contract of `kind`.
    """
    import pyarrow.parquet as pq

    faults = column_faults(table, kind)
    if faults:
        raise SchemaError(f"{path}: " + "; ".join(str(fault) for fault in faults))
    pq.write_table(table, path, compression="zstd")


def own_documents(folder: Path) -> frozenset[str]:
    """The ids of the queries of a data artifact that are documents of it too: ArguAna and Quora are such sets.

    A query is a document when both have one id and, normalised, the query's text is the document's title, its text,
    or the two together. The id alone does not tell: Cranfield and WANDS number queries and documents both from 1.

    Every search would rank such a document first, so it is never a candidate, a negative or a judged document of its
    own query: runs (`index.hits`), pairs and pools (`pipeline.data.candidates`), contrasts within a batch and reports
    leave it out.

    Args:
        folder: has queries.parquet; without documents.parquet no query is a document.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not (folder / "documents.parquet").is_file():
        return frozenset()
    queries = read(folder / "queries.parquet", "queries").select(["query_id", "text"])
    texts = dict(zip(*queries.to_pydict().values(), strict=True))
    with pq.ParquetFile(folder / "documents.parquet") as file:
        wanted = pa.array(texts, file.schema_arrow.field("doc_id").type)
        parts = (pc.any(pc.is_in(batch["doc_id"], wanted)).as_py() for batch in file.iter_batches(columns=["doc_id"]))
        if not any(parts):
            return frozenset()
    shared = pc.field("doc_id").isin(wanted)
    documents = pq.read_table(folder / "documents.parquet", columns=["doc_id", "title", "text"], filters=shared)
    return frozenset(
        doc_id
        for doc_id, title, body in zip(*documents.to_pydict().values(), strict=True)
        if text.normalise(texts[doc_id])
        in {text.normalise(part) for part in (title, body, text.document_text(title, body))}
    )


CLICK = "click"
"""The source of judgments that were made from a click log."""

PAGE = "page"
"""The source of judgments that were made from thumbs of the search page."""

WEAK = (CLICK, PAGE)
"""Sources of judgments that reports leave out unless they are asked for, and that training may weigh less."""

PREFERENCE = ("human", PAGE, CLICK, "model")
"""Sources of judgments, the most trusted first."""
