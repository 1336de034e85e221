"""Inputs that are there and hold nothing: each is said, and refused where it cannot be used."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import DataConfig, SourceConfig
from pipeline.data import convert, corpus, judgments, sources
from pipeline.data.checks import check
from pipeline.errors import InputError, MissingError, SchemaError

DOCUMENTS = '{"_id": "d1", "title": "a", "text": "b"}\n{"_id": "d2", "title": "c", "text": "d"}\n'
QUERIES = '{"_id": "q1", "text": "a"}\n'
HEAD = "query-id\tcorpus-id\tscore\n"
MAP = {"query": "query", "title": "title", "grade": "grade"}


def _write(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def _beir(folder: Path, documents: str, queries: str, qrels: str) -> SourceConfig:
    _write(folder, **{"corpus.jsonl": documents, "queries.jsonl": queries, "qrels__test.tsv": qrels})
    return SourceConfig(path=str(folder))


def _table(name: str, content: str) -> Callable[[Path], SourceConfig]:
    def make(folder: Path) -> SourceConfig:
        _write(folder, **{name: content})
        return SourceConfig(path=str(folder / name), columns=MAP)

    return make


def _parquet(folder: Path) -> SourceConfig:
    folder.mkdir()
    for name, columns in (
        ("documents", ("doc_id", "title", "text")),
        ("queries", ("query_id", "text")),
    ):
        pq.write_table(pa.table({column: pa.array([], pa.string()) for column in columns}), folder / f"{name}.parquet")
    return SourceConfig(path=str(folder))


def _database(folder: Path) -> SourceConfig:
    folder.mkdir()
    with sqlite3.connect(folder / "shop.db") as connection:
        connection.execute("CREATE TABLE docs (doc_id TEXT, title TEXT, text TEXT)")
    connection.close()
    return SourceConfig(path=f"sqlite:///{folder}/shop.db?table=docs")


def _folder(folder: Path) -> SourceConfig:
    _write(folder, **{".DS_Store": "x"})
    return SourceConfig(path=str(folder))


NOTHING: dict[str, Callable[[Path], SourceConfig]] = {
    "a table of names alone": _table("a.csv", "query,title,grade\n"),
    "a table of names alone, tabs": _table("a.tsv", "query\ttitle\tgrade"),
    "names after a byte-order mark": _table("a.csv", "\ufeffquery,title,grade\r\n\r\n"),
    "a file of nothing": _table("a.csv", ""),
    "a click log of names alone": lambda folder: SourceConfig(
        path=str(_write(folder, **{"c.csv": "query,title,rank,clicked\n"}) / "c.csv"),
        columns={"query": "query", "title": "title", "position": "rank", "clicked": "clicked"},
    ),
    "JSON lines of nothing": _table("a.jsonl", ""),
    "JSON lines of blank lines": _table("a.jsonl", "\n\r\n  \n"),
    "a BEIR folder of nothing": lambda folder: _beir(folder, "", "", HEAD),
    "Parquet tables of nothing": _parquet,
    "an empty SQL result": _database,
    "a folder of nothing": _folder,
    "qrels of nothing": lambda folder: SourceConfig(path=str(_write(folder, **{"qrels.txt": ""}) / "qrels.txt")),
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_source_of_nothing_is_refused_wherever_it_is_read(name: str, tmp_path: Path) -> None:
    source = NOTHING[name](tmp_path / "source")
    good = _beir(tmp_path / "good", DOCUMENTS, QUERIES, HEAD + "q1\td1\t1\n")
    uses: list[Callable[[], object]] = [
        lambda: check.examine([source], Path()),
        lambda: convert.convert(source.path, "auto", tmp_path / "out", source.columns),
        lambda: corpus.make(tmp_path, [source], Path(), "drop"),
        lambda: corpus.make(tmp_path, [good, source], Path(), "drop"),
        lambda: judgments.make(tmp_path, DataConfig(sources=(good, source), faulty_rows="drop")),
    ]
    for use in uses:
        with pytest.raises(InputError, match=r"has no rows|is empty|without files") as refused:
            use()
        assert "source" in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("documents", "queries", "qrels", "file", "table"),
    [
        (DOCUMENTS, QUERIES, HEAD, "test.tsv", "judgments"),
        (DOCUMENTS, "", HEAD, "queries.jsonl", "queries"),
        ("", QUERIES, HEAD, "corpus.jsonl", "documents"),
    ],
)
def test_a_file_of_nothing_beside_others_is_named_and_its_table_listed(
    documents: str, queries: str, qrels: str, file: str, table: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = _beir(tmp_path / "source", documents, queries, qrels)
    (report,) = check.examine([source], Path())
    assert table in report.noticed["tables without rows"].examples
    assert any(file in record.message and "has no rows" in record.message for record in caplog.records)
    with pytest.raises(SchemaError, match="no judgments"):
        judgments.make(tmp_path, DataConfig(sources=(source,)))
    with pytest.raises(SchemaError, match="no judgments"):
        convert.split(source, 0.1, 0.2, 1, tmp_path / "out")


def test_an_empty_split_beside_a_full_one_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = _beir(tmp_path / "source", DOCUMENTS, QUERIES, HEAD)
    _write(tmp_path / "source", **{"qrels__train.tsv": HEAD + "q1\td1\t1\n"})
    assert sources.read(source, Path()).judgments.num_rows == 1
    assert [record.message for record in caplog.records if "has no rows" in record.message] == [
        f"{tmp_path}/source/qrels/test.tsv: has no rows below the names of its columns"
    ]


def test_thumbs_that_cancel_out_are_said_and_are_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = _beir(tmp_path / "good", DOCUMENTS, QUERIES, HEAD + "q1\td1\t1\n")
    votes = [_thumb(voter, thumb) for voter, thumb in (("a", "up"), ("b", "down"))]
    _write(tmp_path / "votes", **{"thumbs.jsonl": "\n".join(votes) + "\n"})
    data = judgments.make(tmp_path, DataConfig(sources=(good, SourceConfig(path=str(tmp_path / "votes")))))
    assert data.metrics["judgments"] == 1
    assert "votes: has no rows yet" in caplog.text


def _thumb(voter: str, thumb: str) -> str:
    fields = {"voter": voter, "query": "a", "doc_id": "d1", "thumb": thumb, "rank": 1, "release": "r", "time": ""}
    return json.dumps(fields)


def test_a_file_that_is_not_there_is_no_empty_one(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        sources.read(SourceConfig(path=str(tmp_path / "nothing")), Path())
