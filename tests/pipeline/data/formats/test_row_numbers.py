"""Tables of judged texts with an `id`: it numbers their rows, or names their documents."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest

from flows.source_columns import with_columns
from pipeline.config import SourceConfig
from pipeline.data import sources

Rows = list[tuple[int, str, str, int]]

JUDGED_TWICE: Rows = [(row, f"query {row}", f"product {row % 4}", row % 3) for row in range(8)]
"""Four products, each judged for two queries, in rows that are numbered."""
NAMED: Rows = [(row % 4, f"query {row}", f"product {row % 4}", row % 3) for row in range(8)]
"""The same with the ids of the products."""
JUDGED_ONCE: Rows = [(row, f"query {row % 2}", f"product {row}", row % 3) for row in range(8)]
"""Eight products, each judged once, so that each row is another document."""


def _csv(folder: Path, rows: pd.DataFrame) -> str:
    rows.to_csv(folder / "judged.csv", index=False)
    return f"{folder}/judged.csv"


def _json_lines(folder: Path, rows: pd.DataFrame) -> str:
    lines = [json.dumps(row) for row in rows.to_dict("records")]
    (folder / "judged.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return f"{folder}/judged.jsonl"


def _parquet(folder: Path, rows: pd.DataFrame) -> str:
    rows.to_parquet(folder / "judged.parquet")
    return f"{folder}/judged.parquet"


def _two_files(folder: Path, rows: pd.DataFrame) -> str:
    for number, part in enumerate((rows[:4], rows[4:])):
        part.to_csv(folder / f"judged-{number}.csv", index=False)
    return f"{folder}/judged-*.csv"


def _database(folder: Path, rows: pd.DataFrame) -> str:
    with closing(sqlite3.connect(folder / "judged.db")) as connection:
        rows.to_sql("judged", connection, index=False)
    return f"sqlite:///{folder}/judged.db?table=judged"


@pytest.mark.parametrize("name", ["id", "_id", "uuid", "ID"])
@pytest.mark.parametrize("write", [_csv, _json_lines, _parquet, _two_files, _database])
@pytest.mark.parametrize(
    ("rows", "documents", "named"), [(JUDGED_TWICE, 4, False), (NAMED, 4, True), (JUDGED_ONCE, 8, True)]
)
def test_an_id_of_each_row_makes_no_documents_of_texts_that_come_again(
    rows: Rows, documents: int, named: bool, write: Callable[[Path, pd.DataFrame], str], name: str, tmp_path: Path
) -> None:
    """Four products in eight judgments were once eight documents, and search answered with each twice."""
    path = write(tmp_path, pd.DataFrame(rows, columns=[name, "query", "product_title", "relevance"]))
    source = with_columns(SourceConfig(path=path), "judgments")
    assert ("doc_id" in source.columns) is named
    read = sources.read(source, Path())
    assert (read.documents.num_rows, read.judgments.num_rows) == (documents, 8)


def test_an_id_that_a_person_maps_stays(tmp_path: Path) -> None:
    path = _csv(tmp_path, pd.DataFrame(JUDGED_TWICE, columns=["id", "query", "product_title", "relevance"]))
    source = with_columns(SourceConfig(path=path, columns={"doc_id": "id"}), "judgments")
    assert source.columns["doc_id"] == "id"


def test_the_id_of_a_table_of_documents_stays(tmp_path: Path) -> None:
    path = _csv(tmp_path, pd.DataFrame({"id": range(8), "title": ["the same title"] * 8}))
    assert with_columns(SourceConfig(path=path), "documents").columns["doc_id"] == "id"
