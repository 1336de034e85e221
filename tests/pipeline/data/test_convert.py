"""A converted source is the source, and what cannot be converted leaves nothing."""

import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline import text
from pipeline.config import SourceConfig
from pipeline.data import convert, sources
from pipeline.errors import ConfigError, SchemaError


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    documents = ({"_id": f"d{n}", "title": f"title {n}", "text": "正文"} for n in range(30))
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    queries = ({"_id": f"q{n}", "text": f"Query {n // 2}" + " " * (n % 2)} for n in range(30))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    rows = (f"q{n}\td{n}\t{n % 3}\n" for n in range(30))
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return folder


def test_a_converted_source_reads_back_the_same(beir: Path, tmp_path: Path) -> None:
    convert.convert(beir, "beir", tmp_path / "new" / "out")
    before = sources.read(SourceConfig(path=str(beir)), Path())
    after = sources.read(SourceConfig(path=str(tmp_path / "new" / "out")), Path())
    assert after.format == "parquet"
    for kind in ("documents", "queries", "judgments"):
        assert getattr(after, kind).to_pylist() == getattr(before, kind).to_pylist()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out"]


def test_splits_are_by_normalised_query_and_replace_published_ones(beir: Path, tmp_path: Path) -> None:
    convert.split(SourceConfig(path=str(beir)), 0.3, 0.3, 5, tmp_path / "out")
    frame = pd.read_parquet(tmp_path / "out" / "judgments.parquet")
    queries = pd.read_parquet(tmp_path / "out" / "queries.parquet").set_index("query_id")["text"]
    assert set(frame["split"]) == {"train", "valid", "test"}
    sides = frame.assign(text=[text.normalise(queries[name]) for name in frame["query_id"]]).groupby("text")["split"]
    assert (sides.nunique() == 1).all()
    assert (sides.size() == 2).all()


@pytest.mark.parametrize("there", ["file", "folder"])
def test_what_is_there_is_not_written_over(beir: Path, tmp_path: Path, there: str) -> None:
    out = tmp_path / "out"
    if there == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="out: is there already"):
        convert.convert(beir, "auto", out)
    with pytest.raises(ConfigError, match="out: is there already"):
        convert.split(SourceConfig(path=str(beir)), 0.1, 0.1, 1, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beir", "out"]


def test_an_empty_folder_may_be_filled(beir: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    convert.convert(beir, "auto", tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_the_command_that_lists_unusable_rows_names_the_data_and_how_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "my ratings.csv"
    file.write_text("what,name,worth\nknife,a knife,good\npan,a pan,bad\n,a pot,bad\n", encoding="utf-8")
    columns = {"query": "what", "title": "name", "grade": "worth"}
    with pytest.raises(SchemaError) as refused:
        convert.convert(file, "table", tmp_path / "out", columns, {"good": 1, "bad": 0})
    command = "data check '{0}' --format table --columns query=what,title=name,grade=worth --labels good=1,bad=0"
    assert f"`relevance {command.format(file)}` lists them all" in str(refused.value)


def test_a_failure_half_way_leaves_nothing(beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def fails(table: object, path: Path, kind: str) -> None:
        written.append(kind)
        path.write_text("half")
        if kind == "queries":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert.schema, "write", fails)
    with pytest.raises(SchemaError, match=r"out: could not be written \(No space left on device\); nothing was kept"):
        convert.convert(beir, "auto", tmp_path / "out")
    assert written == ["documents", "queries"]
    assert [path.name for path in tmp_path.iterdir()] == ["beir"]


def test_shares_that_leave_nothing_to_train_on_are_refused(beir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave nothing to train on"):
        convert.split(SourceConfig(path=str(beir)), 0.5, 0.5, 1, tmp_path / "out")
