"""T2Ranking: Chinese passages with grades 0..3."""

from pathlib import Path

import pyarrow as pa

from pipeline.data.formats import row_locations, separated_files, tables
from pipeline.data.formats.tables import SPLIT_OF, Tables

T2RANKING_GRADES = {"0": 0, "1": 1, "2": 2, "3": 3}


def t2ranking_files(path: Path) -> list[Path]:
    """The collection, and queries and qrels of each split that is there, in the folder or in `data` below it."""
    folder = path / "data" if (path / "data" / "collection.tsv").is_file() else path
    splits = [split for split in ("train", "dev", "test") if (folder / f"qrels.{split}.tsv").is_file()]
    names = [f"{kind}.{split}.tsv" for split in splits for kind in ("queries", "qrels")]
    return [folder / name for name in ("collection.tsv", *names)] if names and path.is_dir() else []


def t2ranking(path: Path) -> Tables:
    """T2Ranking (arXiv:2304.03679): 4 grades of collection.tsv's passages for queries.{train,dev}.tsv.

    Each split numbers its queries from 0, so the split's name is put before their ids. The retrieval qrels, which have
    relevant passages only, and the mined negatives are not read. A header line is skipped where a file has one.
    """
    collection, *split_files = t2ranking_files(path)
    documents = tables.id_and_text(collection, "documents")
    located = {"documents": [tables.id_rows(collection, documents.num_rows)], "queries": [], "judgments": []}
    queries, parts = [], []
    for queries_file, qrels_file in zip(split_files[::2], split_files[1::2], strict=True):
        split = queries_file.name.split(".")[1]
        queries.append(_numbered(split, tables.id_and_text(queries_file, "queries")))
        rows = separated_files.untitled(qrels_file, ("query_id", "iteration", "doc_id", "grade"), heads=("qid",))
        rows = rows.append_column("split", tables.all_the_same(SPLIT_OF[split], rows.num_rows))
        parts.append(_numbered(split, rows))
        located["queries"].append(tables.id_rows(queries_file, queries[-1].num_rows))
        located["judgments"].append(tables.id_rows(qrels_file, rows.num_rows))
    judgments, faults = tables.judgments(parts, lambda values: tables.named_grades(values, T2RANKING_GRADES))
    return Tables(
        documents=documents,
        queries=pa.concat_tables(queries),
        judgments=judgments,
        faults=tuple(faults),
        locations=row_locations.of_tables(located, path),
    )


def _numbered(split: str, table: pa.Table) -> pa.Table:
    """The table with a split's name before its query ids."""
    column = table.column_names.index("query_id")
    return table.set_column(column, "query_id", tables.joined("-", split, table["query_id"]))
