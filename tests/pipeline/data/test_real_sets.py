"""Real sets through the whole of it: their counts are those that their authors' files have."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline import schema, text
from pipeline.config import DataConfig, SourceConfig
from pipeline.data import judgments
from pipeline.data.checks import check
from pipeline.errors import SchemaError

pytestmark = pytest.mark.data


@pytest.mark.parametrize("name", ["homedepot", "qbqtc_v1", "kuake_qtr"])
def test_nothing_of_a_set_is_lost_and_no_query_leaks(shared_data: Path, tmp_path: Path, name: str) -> None:
    data = judgments.make(tmp_path, DataConfig(root=str(shared_data), sources=(SourceConfig(path=name),)))
    raw = pd.read_parquet(shared_data / name / "qrels.parquet")
    rows = schema.read(data.file("judgments.parquet"), "judgments").to_pandas()
    columns = ["query_id", "doc_id", "grade"]
    pd.testing.assert_frame_equal(rows[columns], raw[columns], check_dtype=False)
    documents = pd.read_parquet(shared_data / name / "corpus.parquet", columns=["doc_id"])
    kept = schema.read(data.file("documents.parquet"), "documents")["doc_id"].to_pylist()
    assert kept == documents["doc_id"].tolist()
    queries = schema.read(data.file("queries.parquet"), "queries").to_pandas().set_index("query_id")["text"]
    sides = rows.assign(text=[text.normalise(queries[query]) for query in rows["query_id"]]).groupby("text")["split"]
    assert (sides.nunique() == 1).all()
    shares = rows.drop_duplicates("query_id")["split"].value_counts(normalize=True)
    assert shares.to_dict() == pytest.approx({"train": 0.7, "valid": 0.1, "test": 0.2}, abs=0.03)


def test_home_depot_keeps_its_published_split_as_test(shared_data: Path, tmp_path: Path) -> None:
    config = DataConfig(root=str(shared_data), sources=(SourceConfig(path="homedepot"),), splits="source")
    data = judgments.make(tmp_path, config)
    assert data.metrics["splits"]["test"]["judgments"] == 7447
    assert data.metrics["splits"]["train"]["judgments"] + data.metrics["splits"]["valid"]["judgments"] == 55392


def test_kuake_shares_queries_between_its_published_splits(shared_data: Path, tmp_path: Path) -> None:
    config = DataConfig(root=str(shared_data), sources=(SourceConfig(path="kuake_qtr"),), splits="source")
    with pytest.raises(SchemaError, match=r"kuake_qtr: 2,201 queries stand in more.*in train and valid.*\"hash\""):
        judgments.make(tmp_path, config)
    (report,) = check.examine([SourceConfig(path=str(shared_data / "kuake_qtr"))], Path())
    assert report.noticed["queries in more than one published split"].count == 2201
    assert report.faults == ()


def test_two_products_sets_are_joined_with_grades_on_one_scale(shared_data: Path, tmp_path: Path) -> None:
    sources = (SourceConfig(path="homedepot", grades=(0, 0, 1, 1, 2, 2, 3)), SourceConfig(path="crowdflower"))
    data = judgments.make(tmp_path, DataConfig(root=str(shared_data), sources=sources))
    assert data.metrics["judgments"] == 62839 + 7082
    assert data.metrics["max_grade"] == 3
