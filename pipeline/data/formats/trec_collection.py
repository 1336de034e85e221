"""A whole collection with TREC qrels: documents and queries as JSON lines or TSV, qrels as text."""

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.data.formats import qrels_file, row_locations, tables
from pipeline.data.formats import trec_files as trec
from pipeline.data.formats.row_locations import FileRows
from pipeline.data.formats.tables import SPLIT_OF, Tables, first_file, id_and_text, json_table, qrels_files
from pipeline.schema import InvalidRow

_TREC_DOCUMENTS = ("corpus.jsonl", "collection.tsv", "documents.tsv")


def trec_files(path: Path) -> list[Path]:
    """Documents, queries and qrels files of a TREC collection; empty unless all three are there."""
    documents, queries, qrels = first_file(path, _TREC_DOCUMENTS), _trec_queries(path), qrels_files(path)
    return [documents, *queries, *qrels] if documents and queries and qrels else []


def lacking(path: Path) -> str:
    """The line on what a folder with qrels lacks to be a collection; empty for any other path."""
    documents, queries = first_file(path, _TREC_DOCUMENTS), _trec_queries(path)
    qrels = [file for file in qrels_files(path) if qrels_file.is_qrels(file)]
    missing = [
        *([] if documents else [f"the documents ({' or '.join(_TREC_DOCUMENTS)}, with lines of id, tab, text)"]),
        *([] if queries else ["the queries (queries.jsonl or queries.tsv)"]),
    ]
    if not qrels or not missing:
        return ""
    return f"\nIt has the qrels {qrels[0].name}; put {' and '.join(missing)} beside them"


def trec_collection(path: Path) -> Tables:
    """TREC qrels beside documents (corpus.jsonl, or collection.tsv as `id TAB text`) and queries (the same two ways).

    A qrels file with train, dev or test in its name is of that split.
    """
    documents_file, *query_and_qrels_files = trec_files(path)
    documents, faults, rows_of_documents = _collection(documents_file, "documents")
    located = {"documents": [rows_of_documents], "queries": [], "judgments": []}
    queries: list[pa.Table] = []
    parts: list[pa.Table] = []
    before = 0
    for file in query_and_qrels_files:
        if file in qrels_files(path):
            rows = trec.read_qrels(file)
            word = re.search(r"(?:^|[._-])(train|dev|valid|val|test)(?=[._-]|$)", file.name)
            split = tables.all_the_same(SPLIT_OF[word[1]] if word else None, rows.num_rows)
            parts.append(rows.append_column("split", split))
            located["judgments"].append(row_locations.one_a_line(file, rows.num_rows))
        else:
            table, more, rows_of_queries = _collection(file, "queries")
            located["queries"].append(rows_of_queries)
            faults += [InvalidRow(fault.table, before + (fault.row or 0), fault.reason) for fault in more]
            queries.append(table)
            before += table.num_rows
    return Tables(
        documents=documents,
        queries=pa.concat_tables(queries),
        judgments=pa.concat_tables(parts),
        faults=tuple(faults),
        locations=row_locations.of_tables(located, path),
    )


def _collection(file: Path, kind: str) -> tuple[pa.Table, list[InvalidRow], FileRows]:
    """Documents or queries of a file, their faults, and the rows of the file."""
    if file.suffix == ".jsonl":
        table, faults = json_table(file, kind)
        return table, faults, row_locations.one_a_line(file, table.num_rows)
    table = id_and_text(file, kind)
    return table, [], tables.id_rows(file, table.num_rows)


def _trec_queries(path: Path) -> Sequence[Path]:
    queries = first_file(path, ("queries.jsonl", "queries.tsv", "topics.tsv"))
    return (
        [queries] if queries else [*tables.data_files(path, "queries.*.tsv"), *tables.data_files(path, "topics.*.tsv")]
    )
