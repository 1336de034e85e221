"""Readers of the layouts in which many collections are kept: our own Parquet tables, BEIR, TREC.

Each takes the folder (or file) and gives `Tables`. Texts stay as they are.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data import files, tables, trec
from pipeline.data.tables import SPLIT_OF, Tables
from pipeline.errors import SchemaError
from pipeline.schema import Fault

_PARQUET = {
    "documents": ("documents.parquet", "corpus.parquet"),
    "queries": ("queries.parquet",),
    "judgments": ("judgments.parquet", "qrels.parquet"),
}
_TREC_DOCUMENTS = ("corpus.jsonl", "collection.tsv", "documents.tsv")


def parquet_files(path: Path) -> list[Path]:
    """The tables of our layout in a folder, or one .parquet file, which is taken for documents."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    return [found for names in _PARQUET.values() if (found := _first(path, names))]


def parquet(path: Path) -> Tables:
    """documents (or corpus), queries, and judgments (or qrels) .parquet; columns as in `pipeline.schema`."""
    if path.is_file():
        return Tables(documents=tables.read(path, "documents"))
    found = {kind: tables.read(file, kind) for kind, names in _PARQUET.items() if (file := _first(path, names))}
    judgments = found.get("judgments")
    if judgments is not None and "split" in judgments.column_names:
        place = judgments.column_names.index("split")
        found["judgments"] = judgments.set_column(place, "split", tables.splits(judgments["split"]))
    return Tables(**found)


def beir_files(path: Path) -> list[Path]:
    """What a folder of the BEIR benchmark holds; documents at least."""
    names = [path / "corpus.jsonl", path / "queries.jsonl", *sorted((path / "qrels").glob("*.tsv"))]
    return [file for file in names if file.is_file()] if names[0].is_file() and not qrels_files(path) else []


def beir(path: Path) -> Tables:
    """corpus.jsonl (_id, title, text), queries.jsonl (_id, text), qrels/{train,dev,test}.tsv with a line of names."""
    documents, faults = _json_table(path / "corpus.jsonl", "documents")
    if not (path / "queries.jsonl").is_file():
        return Tables(documents=documents, faults=tuple(faults))
    queries, more = _json_table(path / "queries.jsonl", "queries")
    parts = []
    for file in sorted((path / "qrels").glob("*.tsv")):
        rows = files.titled(file, ("query-id", "corpus-id", "score"), delimiter="\t", quoted=False)
        rows = rows.select(["query-id", "corpus-id", "score"]).rename_columns(["query_id", "doc_id", "grade"])
        parts.append(rows.append_column("split", tables.all_the_same(SPLIT_OF.get(file.stem), rows.num_rows)))
    judgments, wrong = tables.judgments(parts, tables.whole_grades)
    return Tables(documents=documents, queries=queries, judgments=judgments, faults=(*faults, *more, *wrong))


def trec_files(path: Path) -> list[Path]:
    """Documents, queries and qrels files of a TREC collection; empty unless all three are there."""
    documents, queries, qrels = _first(path, _TREC_DOCUMENTS), _trec_queries(path), qrels_files(path)
    return [documents, *queries, *qrels] if documents and queries and qrels else []


def trec_collection(path: Path) -> Tables:
    """TREC qrels beside documents (corpus.jsonl, or collection.tsv as `id TAB text`) and queries (the same two ways).

    A qrels file with train, dev or test in its name is of that split.
    """
    documents_file, *others = trec_files(path)
    documents, faults = _collection(documents_file, "documents")
    queries: list[pa.Table] = []
    parts: list[pa.Table] = []
    before = 0
    for file in others:
        if file in qrels_files(path):
            rows = trec.read_qrels(file)
            word = re.search(r"(?:^|[._-])(train|dev|valid|val|test)(?=[._-]|$)", file.name)
            split = tables.all_the_same(SPLIT_OF[word[1]] if word else None, rows.num_rows)
            parts.append(rows.append_column("split", split))
        else:
            table, more = _collection(file, "queries")
            faults += [Fault(fault.table, before + (fault.row or 0), fault.reason) for fault in more]
            queries.append(table)
            before += table.num_rows
    return Tables(
        documents=documents,
        queries=pa.concat_tables(queries),
        judgments=pa.concat_tables(parts),
        faults=tuple(faults),
    )


def qrels_files(path: Path) -> list[Path]:
    """Files of a folder that are qrels by their name."""
    if not path.is_dir():
        return []
    return sorted(file for file in path.glob("*qrel*") if file.is_file() and file.suffix != ".parquet")


def id_and_text(file: Path, kind: str) -> pa.Table:
    """Documents or queries of a file of `id TAB text`, without quotes; a line of names at its head is skipped."""
    skip = int(files.header(file, "\t")[:1] in (["pid"], ["qid"], ["id"], ["doc_id"], ["query_id"]))
    rows = files.untitled(file, ("id", "text"), skip=skip)
    if kind == "queries":
        return pa.table({"query_id": rows["id"], "text": rows["text"]})
    return pa.table({"doc_id": rows["id"], "title": tables.all_the_same("", rows.num_rows), "text": rows["text"]})


def text_of(row: dict[str, Any], name: str, file: Path, number: int) -> str:
    """The text under a name in an object of a JSON lines file; a title may be absent, an id a number.

    Raises:
        SchemaError: absent, or not a text; names the line.
    """
    value = row.get(name)
    if value is None and name == "title":
        return ""
    if isinstance(value, int) and name == "_id":
        return str(value)
    if not isinstance(value, str):
        what = f"has no '{name}'" if value is None else f"'{name}' is a {type(value).__name__}, not a text"
        raise SchemaError(f"{file}, line {number}: {what}; it has {list(row)}")
    return value


def _json_table(file: Path, kind: str) -> tuple[pa.Table, list[Fault]]:
    """Ids and texts of a BEIR file, with faults for those that are not valid Unicode."""
    id_column, columns = ("doc_id", ("title", "text")) if kind == "documents" else ("query_id", ("text",))
    values: dict[str, list[str]] = {name: [] for name in (id_column, *columns)}
    for number, row in files.json_lines(file):
        values[id_column].append(text_of(row, "_id", file, number))
        for name in columns:
            values[name].append(text_of(row, name, file, number))
    arrays, faults = {}, []
    for name, column in values.items():
        arrays[name], more = tables.strings(column, kind, name)
        faults += more
    return pa.table(arrays), faults


def _collection(file: Path, kind: str) -> tuple[pa.Table, list[Fault]]:
    return _json_table(file, kind) if file.suffix == ".jsonl" else (id_and_text(file, kind), [])


def _trec_queries(path: Path) -> Sequence[Path]:
    one = _first(path, ("queries.jsonl", "queries.tsv", "topics.tsv"))
    return [one] if one else sorted([*path.glob("queries.*.tsv"), *path.glob("topics.*.tsv")])


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    return next((file for name in names if (file := folder / name).is_file()), None)
