"""The result of every reader of a source: three tables, and the rows of them that could not be read as they are.

A value that a table cannot hold (a lone surrogate, an unknown grade) has a stand-in there and an `InvalidRow` beside
it, whose row is always a row of the table.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import disk, text
from pipeline.config import SourceConfig
from pipeline.data.formats import row_locations, separated_files, text_files
from pipeline.data.formats.row_locations import FileRows
from pipeline.data.formats.text_files import STRING
from pipeline.errors import SchemaError
from pipeline.schema import InvalidRow, NameRows, row_names

DOCUMENTS = pa.schema([("doc_id", STRING), ("title", STRING), ("text", STRING)])
QUERIES = pa.schema([("query_id", STRING), ("text", STRING)])
JUDGMENTS = pa.schema([("query_id", STRING), ("doc_id", STRING), ("grade", pa.int64()), ("split", STRING)])

SPLIT_OF = {"train": "train", "dev": "valid", "valid": "valid", "validation": "valid", "val": "valid", "test": "test"}
"""Published names of splits → ours."""

NO_SPLIT = ("", "all")
"""Values of a column of splits that put a row into none."""

EMPTY_GRADE = "the grade is empty"
"""The reason why a row without a grade cannot be used: nobody judged its pair yet."""

Grading = Callable[[pa.ChunkedArray], tuple[pa.ChunkedArray, list[InvalidRow]]]
"""Grades (rows,) and faults from the texts that stand for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """Documents, queries and judgments of a source; each may be empty."""

    documents: pa.Table = field(default_factory=DOCUMENTS.empty_table)
    queries: pa.Table = field(default_factory=QUERIES.empty_table)
    judgments: pa.Table = field(default_factory=JUDGMENTS.empty_table)
    faults: tuple[InvalidRow, ...] = ()
    clicks: Mapping[str, Any] = field(default_factory=dict)
    """Figures that the judgments of a click log rest on, see `ClickJudgments`; empty for other sources."""
    advice: str = ""
    """Advice on mending the rows in `faults`; empty where their reasons say all. See `mapped_grades.GradeColumn`."""
    scale: tuple[float, ...] = ()
    """The scale that was chosen for fractional grades; see `mapped_grades.GradeColumn`."""
    locations: Mapping[str, NameRows] = field(default_factory=dict, compare=False)
    """Table → the locations of its rows in the files that were read; empty where only their numbers are known."""


def all_the_same(value: str | None, rows: int) -> pa.ChunkedArray:
    """A column of one text, or of nulls."""
    return pa.chunked_array([pa.repeat(pa.scalar(value, STRING), rows)])


def strings(values: Sequence[str], table: str, column: str) -> tuple[pa.Array, list[InvalidRow]]:
    """A column of texts, and a fault for each that is not valid Unicode, which is cleaned in the column."""
    try:
        return pa.array(values, STRING), []
    except UnicodeEncodeError:
        cleaned = [text.clean(value) for value in values]
        wrong = [row for row, value in enumerate(values) if cleaned[row] != value]
        return pa.array(cleaned, STRING), [
            InvalidRow(table, row, f"{column} {text.fault(values[row])}") for row in wrong
        ]


def column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column as text, with nothing where it is null or not there."""
    if name not in table.column_names:
        return all_the_same("", table.num_rows)
    return pc.fill_null(pc.cast(table[name], STRING), "")


def joined(separator: str, *parts: pa.ChunkedArray | str) -> pa.ChunkedArray:
    """Texts put together, (rows,); a part that is one text stands in every row."""
    columns = [pa.scalar(part, STRING) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*columns, pa.scalar(separator, STRING))


def splits(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Our names for published splits; null for none; an unknown name stays, to be found faulty."""
    folded = pc.utf8_lower(pc.cast(values, STRING))
    folded = pc.if_else(pc.is_in(folded, value_set=pa.array(NO_SPLIT, STRING)), pa.scalar(None, STRING), folded)
    indices = pc.index_in(folded, value_set=pa.array(list(SPLIT_OF), STRING))
    return pc.coalesce(pc.take(pa.array(list(SPLIT_OF.values()), STRING), indices), folded)


def whole_grades(values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, list[InvalidRow]]:
    """Grades from texts such as '2' or '2.0'; 0 and a fault where a text is no whole number."""
    good = pc.match_substring_regex(values, r"^\s*[+-]?[0-9]{1,9}(?:\.0*)?\s*$")
    digits = pc.replace_substring_regex(values, r"\.0*(\s*)$", r"\1")
    plain = pc.utf8_ltrim(pc.utf8_trim_whitespace(pc.if_else(good, digits, pa.scalar("0", values.type))), "+")
    return pc.cast(plain, pa.int64()), unknown_grades(values, good, "is not a whole number")


def named_grades(values: pa.ChunkedArray, meaning: Mapping[str, int]) -> tuple[pa.ChunkedArray, list[InvalidRow]]:
    """Grades from names such as 'Exact'; 0 and a fault where a name is not one of `meaning`."""
    indices = pc.index_in(values, value_set=pa.array(list(meaning), values.type))
    grades = pc.fill_null(pc.take(pa.array(list(meaning.values()), pa.int64()), indices), 0)
    return grades, unknown_grades(values, pc.is_valid(indices), f"is none of {', '.join(meaning)}")


def unknown_grades(values: pa.ChunkedArray, good: pa.ChunkedArray, reason: str) -> list[InvalidRow]:
    """A fault for each row that is not `good`."""
    rows = pc.indices_nonzero(pc.invert(good))
    cells = values.take(rows).to_pylist()
    return [
        InvalidRow("judgments", row, f"grade '{str(cell)[:60]}' {reason}" if cell else EMPTY_GRADE)
        for row, cell in zip(rows.to_pylist(), cells, strict=True)
    ]


def judgments(parts: Sequence[pa.Table], grading: Grading) -> tuple[pa.Table, list[InvalidRow]]:
    """One table of judgments from several whose grades are texts."""
    if not parts:
        return JUDGMENTS.empty_table(), []
    rows = pa.concat_tables(parts)
    grades, faults = grading(rows["grade"])
    return rows.set_column(rows.column_names.index("grade"), "grade", grades).select(JUDGMENTS.names), faults


def from_pairs(
    queries: pa.ChunkedArray,
    titles: pa.ChunkedArray,
    texts: pa.ChunkedArray,
    *,
    grades: pa.ChunkedArray,
    splits: pa.ChunkedArray,
    faults: Iterable[InvalidRow] = (),
    locations: NameRows = row_names,
) -> Tables:
    """Tables from rows that hold the texts of query and document; ids are hashes of these texts.

    Args:
        grades: (rows,) null for an unjudged pair, whose texts are kept all the same.
        faults: faults of the rows; kept for rows that are judged.
        locations: the locations of the rows in their files, for messages.
    """
    query_ids, doc_ids = ids("q", queries), ids("d", titles, texts)
    judged = pc.is_valid(grades)
    judged_before = pc.cumulative_sum(pc.cast(judged, pa.int64())).to_pylist()  # the row itself counted
    known = judged.to_pylist()
    rows = {"query_id": query_ids, "doc_id": doc_ids, "grade": grades, "split": splits}
    document_rows = pa.table({"doc_id": doc_ids, "title": titles, "text": texts}, DOCUMENTS)
    query_rows = pa.table({"query_id": query_ids, "text": queries}, QUERIES)
    documents, in_documents = first_of(document_rows, "doc_id", locations=locations)
    first_queries, in_queries = first_of(query_rows, "query_id", locations=locations)
    kept = pc.indices_nonzero(judged)
    return Tables(
        documents=documents,
        queries=first_queries,
        judgments=pa.table(rows, JUDGMENTS).take(kept),
        faults=tuple(
            replace(fault, row=judged_before[fault.row] - 1)
            for fault in faults
            if fault.row is not None and known[fault.row]
        ),
        locations={
            "documents": in_documents,
            "queries": in_queries,
            "judgments": row_locations.of_chosen(kept, locations),
        },
    )


def ids(prefix: str, *columns: pa.ChunkedArray) -> pa.Array:
    """An id for each row, (rows,): the prefix and 16 hex digits that depend on these texts alone."""
    known: dict[tuple[str, ...], str] = {}
    rows = zip(*(values.to_pylist() for values in columns), strict=True)
    return pa.array([known.get(row) or known.setdefault(row, prefix + _digest(row)) for row in rows], STRING)


def first_rows(table: pa.Table, *columns: str) -> pa.Array:
    """The numbers of the first of all rows that are equal in these columns, in order."""
    return pc.indices_nonzero(pa.array(~table.select(columns).to_pandas().duplicated().to_numpy()))


def first_of(table: pa.Table, *columns: str, locations: NameRows) -> tuple[pa.Table, NameRows]:
    """The first of all rows that are equal in these columns, in order, and names for them.

    Args:
        locations: names for the rows of `table`.
    """
    kept = first_rows(table, *columns)
    return table.take(kept), row_locations.of_chosen(kept, locations)


def is_text(kind: pa.DataType) -> bool:
    """Whether this is one of Arrow's types of text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _digest(parts: tuple[str, ...]) -> str:
    return hashlib.blake2b("\x00".join(parts).encode(), digest_size=8).hexdigest()


def data_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that match a pattern, by name; a name that begins with a dot or with ~$ is never data.

    Editors, macOS (`._test.tsv`), office programs (`~$test.csv`) and copying tools leave such files beside the data.
    """
    return [file for file in _visible(folder, pattern) if file.is_file()]


def dangling_links(folder: Path) -> list[Path]:
    """The links of a folder to nothing, by name; none that is never data, such as an editor's `.#test.csv`."""
    return [file for file in _visible(folder, "*") if file.is_symlink() and not file.exists()]


def _visible(folder: Path, pattern: str) -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if not file.name.startswith((".", "~$")))


def qrels_files(path: Path) -> list[Path]:
    """Files of a folder that are qrels by their name."""
    if not path.is_dir():
        return []
    return [file for file in data_files(path, "*qrel*") if file.suffix != ".parquet"]


def id_and_text(file: Path, kind: str) -> pa.Table:
    """Documents or queries of a file of `id TAB text`, without quotes; a line of names at its head is skipped."""
    rows = separated_files.untitled(file, ("id", "text"), heads=("pid", "qid", "id", "doc_id", "query_id"))
    if kind == "queries":
        return pa.table({"query_id": rows["id"], "text": rows["text"]})
    return pa.table({"doc_id": rows["id"], "title": all_the_same("", rows.num_rows), "text": rows["text"]})


def id_rows(file: Path, count: int) -> FileRows:
    """The rows of a file that `id_and_text` reads, or of qrels in columns with tabs, to be named in messages."""
    return row_locations.separated(file, count, "\t", quoted=False)


def text_of(row: dict[str, Any], name: str, file: Path, number: int) -> str:
    """The text under a name in an object of a JSON lines file; a title may be absent.

    Raises:
        SchemaError: absent, or not a text; names the line.
    """
    value = row.get(name)
    if value is None and name == "title":
        return ""
    if not isinstance(value, str):
        what = f"has no '{name}'" if value is None else f"'{name}' is a {type(value).__name__}, not a text"
        raise SchemaError(f"{file}, line {number}: {what}; it has {list(row)}")
    return value


def id_of(row: dict[str, Any], name: str, file: Path, number: int) -> str:
    """The id under a name in such an object: a text, or a whole number.

    Raises:
        SchemaError: absent, or of another kind; names the line.
    """
    value = row.get(name)
    return str(value) if type(value) is int else text_of(row, name, file, number)


def json_table(file: Path, kind: str) -> tuple[pa.Table, list[InvalidRow]]:
    """Ids and texts of a BEIR file, with faults for those that are not valid Unicode."""
    id_column, columns = ("doc_id", ("title", "text")) if kind == "documents" else ("query_id", ("text",))
    values: dict[str, list[str]] = {name: [] for name in (id_column, *columns)}
    for number, row in text_files.json_lines(file):
        values[id_column].append(id_of(row, "_id", file, number))
        for name in columns:
            values[name].append(text_of(row, name, file, number))
    arrays, faults = {}, []
    for name, column in values.items():
        arrays[name], more = strings(column, kind, name)
        faults += more
    return pa.table(arrays), faults


def first_file(folder: Path, names: Iterable[str]) -> Path | None:
    return next((file for name in names if (file := folder / name).is_file()), None)


def all_or_none(names: Any) -> list[Path]:
    """All of these files, or none where one is missing."""
    files = list(names)
    return files if all(file.is_file() for file in files) else []


@dataclass(frozen=True, slots=True)
class FoundSource:
    """A source that exists, before it is read."""

    name: str
    """Its name where the recipe gives none."""
    shown: str
    """Its address for messages, without a password."""
    digest: Callable[[], str]
    """A hash of the content as it is now."""
    read: Callable[[], Tables]


@dataclass(frozen=True, slots=True)
class Format:
    """A file format of judged collections."""

    name: str
    looked_for: str
    """The files by which it is known, in words."""
    find: Callable[[SourceConfig, Path], FoundSource | None]
    """The source that a recipe means, relative to a folder; None when it is not of this format."""


def of_files(name: str, looked_for: str, files: Callable[[Path], list[Path]], read: Callable[[Path], Tables]) -> Format:
    """A format of files.

    Args:
        name: the name in recipes.
        looked_for: the files it is known by, in words.
        files: the files that would be read from a path; empty when the path is not of this format.
        read: the tables in a path that has such files.
    """

    def find(config: SourceConfig, root: Path) -> FoundSource | None:
        path = root / config.path
        if "://" in config.path or config.columns or not files(path):
            return None
        return FoundSource(name_of(path), str(path), lambda: digest_of(name, files(path)), lambda: read(path))

    return Format(name, looked_for, find)


def name_of(path: Path) -> str:
    """The name of a folder, or of the folder of a file."""
    return path.resolve().parent.name if path.is_file() else path.resolve().name


def digest_of(name: str, files: Iterable[Path]) -> str:
    """A hash of the names and the content of files, whichever folder they are in."""
    parts = [f"{file.name} {disk.sha256(file)}" for file in files]
    return hashlib.blake2b(os.fsencode("\n".join([name, *parts])), digest_size=16).hexdigest()
