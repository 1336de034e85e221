"""BEIR: `corpus.jsonl`, `queries.jsonl` and `qrels/*.tsv`."""

from pathlib import Path

from pipeline.data.formats import tables, text_files
from pipeline.data.formats.tables import SPLIT_OF, Tables, json_table, qrels_files


def beir_files(path: Path) -> list[Path]:
    """The tables of a folder of the BEIR benchmark, which has documents at least."""
    names = [path / "corpus.jsonl", path / "queries.jsonl", *tables.data_files(path / "qrels", "*.tsv")]
    return [file for file in names if file.is_file()] if names[0].is_file() and not qrels_files(path) else []


def beir(path: Path) -> Tables:
    """corpus.jsonl (_id, title, text), queries.jsonl (_id, text), qrels/{train,dev,test}.tsv with a line of names."""
    documents, faults = json_table(path / "corpus.jsonl", "documents")
    if not (path / "queries.jsonl").is_file():
        return Tables(documents=documents, faults=tuple(faults))
    queries, more = json_table(path / "queries.jsonl", "queries")
    parts = []
    for file in tables.data_files(path / "qrels", "*.tsv"):
        rows = text_files.titled(file, ("query-id", "corpus-id", "score"), delimiter="\t", quoted=False)
        rows = rows.select(["query-id", "corpus-id", "score"]).rename_columns(["query_id", "doc_id", "grade"])
        parts.append(rows.append_column("split", tables.all_the_same(SPLIT_OF.get(file.stem), rows.num_rows)))
    judgments, wrong = tables.judgments(parts, tables.whole_grades)
    return Tables(documents=documents, queries=queries, judgments=judgments, faults=(*faults, *more, *wrong))
