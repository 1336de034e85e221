"""BEIR: `corpus.jsonl`, `queries.jsonl` and `qrels/*.tsv`."""

from pathlib import Path

from pipeline.data.formats import row_locations, separated_files, tables
from pipeline.data.formats.tables import SPLIT_OF, Tables, json_table, qrels_files


def beir_files(path: Path) -> list[Path]:
    """The tables of a folder of the BEIR benchmark, which has documents at least."""
    names = [path / "corpus.jsonl", path / "queries.jsonl", *tables.data_files(path / "qrels", "*.tsv")]
    return [file for file in names if file.is_file()] if names[0].is_file() and not qrels_files(path) else []


def beir(path: Path) -> Tables:
    """corpus.jsonl (_id, title, text), queries.jsonl (_id, text), qrels/{train,dev,test}.tsv with a line of names."""
    corpus_file, queries_file = path / "corpus.jsonl", path / "queries.jsonl"
    documents, faults = json_table(corpus_file, "documents")
    located = {"documents": [row_locations.one_a_line(corpus_file, documents.num_rows)]}
    if not queries_file.is_file():
        return Tables(documents=documents, faults=tuple(faults), locations=row_locations.of_tables(located, path))
    queries, more = json_table(queries_file, "queries")
    located |= {"queries": [row_locations.one_a_line(queries_file, queries.num_rows)], "judgments": []}
    parts = []
    for file in tables.data_files(path / "qrels", "*.tsv"):
        rows = separated_files.titled(file, ("query-id", "corpus-id", "score"), delimiter="\t", quoted=False)
        rows = rows.select(["query-id", "corpus-id", "score"]).rename_columns(["query_id", "doc_id", "grade"])
        parts.append(rows.append_column("split", tables.all_the_same(SPLIT_OF.get(file.stem), rows.num_rows)))
        located["judgments"].append(row_locations.separated(file, rows.num_rows, "\t", quoted=False))
    judgments, wrong = tables.judgments(parts, tables.whole_grades)
    return Tables(
        documents=documents,
        queries=queries,
        judgments=judgments,
        faults=(*faults, *more, *wrong),
        locations=row_locations.of_tables(located, path),
    )
