"""Documents alone: what is read by another map is another artifact."""

from dataclasses import fields, replace
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.config import SourceConfig
from pipeline.data import corpus, sources

ELSEWHERE = {"path", "format", "name", "grades", "watermark", "deletions", "deleted", "overlap"}
"""Keys of a source whose effect is in a digest or a name, or in other keys of the artifacts."""

MAP = {"title": "headline", "text": "blurb"}


def test_another_map_of_the_same_file_is_another_corpus(tmp_path: Path) -> None:
    table = tmp_path / "articles.csv"
    table.write_text("sku,headline,blurb,brand\n1,a knife,cuts bread,Acme\n", encoding="utf-8")
    source = SourceConfig(path=str(table), columns={"doc_id": "sku", "title": "headline"})
    texts = {}
    for column in ("", "blurb", "brand"):
        columns = dict(source.columns) | ({"text": column} if column else {})
        documents = corpus.make(tmp_path / "workspace", [replace(source, columns=columns)], tmp_path, "error")
        assert documents.is_new
        texts[column] = pq.read_table(documents.file("documents.parquet"))["text"].to_pylist()
    assert texts == {"": [""], "blurb": ["cuts bread"], "brand": ["Acme"]}
    assert not corpus.make(tmp_path / "workspace", [source], tmp_path, "error").is_new


def test_every_key_of_a_source_that_changes_what_is_read_is_in_its_settings() -> None:
    """A new key must be sorted into either; else documents read by its old value would be taken for new ones."""
    plain = SourceConfig(path="a.csv", columns={**MAP, "clicked": "clicked", "position": "rank"})
    changes = {
        "columns": {**MAP, "clicked": "clicked", "position": "place"},
        "labels": {"good": 1},
        "grade_scale": (0.0, 1.0, 3.0),
        "min_examined": 5.0,
        "query": "SELECT 1",
    }
    assert {field.name for field in fields(SourceConfig)} == ELSEWHERE | set(changes)
    for key, value in changes.items():
        assert sources.settings_of(replace(plain, **{key: value})) != sources.settings_of(plain), key
