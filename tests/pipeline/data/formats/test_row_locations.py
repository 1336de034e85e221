"""A row is named as a person finds it: by the line of its text file, or by its number from 1."""

import json
import sqlite3
from pathlib import Path

import pandas as pd
import pytest

from pipeline.config import DataConfig, SourceConfig
from pipeline.data import judgments, sources, validation
from pipeline.data.checks import check
from pipeline.errors import SchemaError

COLUMNS = {"query": "query", "title": "title", "grade": "grade"}
ROWS = [
    ("red\nknife", "a knife", "1"),
    ("pan", 'a "flat"\r\npan, new', "x"),
    ("pot", "pot\rlid", "99"),
    ("", "cup", "1"),
]


def faults(*configs: SourceConfig) -> list[str]:
    return [str(fault) for report in check.examine(configs, Path()) for fault in report.faults]


def written(separator: str) -> str:
    """The rows as CSV, with an empty line after each of them."""
    cells = ["query", "title", "grade"]
    lines = [separator.join(cells)]
    for row in ROWS:
        lines += [separator.join('"' + cell.replace('"', '""') + '"' for cell in row), ""]
    return "\n".join(lines) + "\n"


def line_of(content: str, part: str) -> int:
    """The line in which a part of a text begins, by counting line feeds."""
    return content[: content.index(part)].count("\n") + 1


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_row_of_a_separated_file_is_named_by_its_first_line(tmp_path: Path, separator: str, mark: str) -> None:
    content = mark + written(separator)
    (tmp_path / "own.csv").write_bytes(content.encode())
    word, high, empty = (line_of(content, part) for part in ('"pan"', '"pot"', f'""{separator}"cup"'))
    source = SourceConfig(path=str(tmp_path / "own.csv"), columns=COLUMNS)
    assert {fault.partition(": ")[0] for fault in faults(source)} == {
        *(f"judgments, line {line}" for line in (word, high, empty)),
        f"queries, line {empty}",
    }


def test_a_row_of_a_value_that_is_too_long_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(f'query,title,grade\n\npan,"{"x" * 1_000_001}",1\n', encoding="utf-8")
    source = SourceConfig(path=str(tmp_path / "own.csv"), columns=COLUMNS)
    assert "documents, line 3: title has 1,000,001 characters; the limit is 1,000,000" in faults(source)


def test_a_row_of_json_lines_is_named_by_its_line_and_one_of_parquet_by_its_number(tmp_path: Path) -> None:
    rows = [{"query": "pan", "title": "a pan", "grade": 1}, {"query": "pot", "title": "a pot", "grade": 99}]
    (tmp_path / "own.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    pd.DataFrame(rows).to_parquet(tmp_path / "own.parquet")
    locations = {".jsonl": "line 3", ".parquet": "row 2"}
    for suffix, location in locations.items():
        source = SourceConfig(path=str(tmp_path / f"own{suffix}"), columns=COLUMNS)
        assert faults(source) == [f"judgments, {location}: grade 99 is outside 0..10"]


def test_a_row_of_several_files_is_named_with_its_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"query,title,grade\npan,pan,1\n{name},a pot,99\n", encoding="utf-8")
    together = [f"judgments, {name}.csv, line 3: grade 99 is outside 0..10" for name in "ab"]
    assert faults(SourceConfig(path=str(tmp_path / "*.csv"), columns=COLUMNS)) == together
    apart = [SourceConfig(path=str(tmp_path / f"{name}.csv"), columns=COLUMNS) for name in "ab"]
    assert faults(*apart) == together


def test_a_document_is_named_by_the_row_that_it_first_stood_in(tmp_path: Path) -> None:
    rows = ["id,name,body", *["a,pan,iron"] * 3, "b,pot,steel", "a,pan,copper"]
    (tmp_path / "items.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    columns = {"doc_id": "id", "title": "name", "text": "body"}
    (fault,) = faults(SourceConfig(path=str(tmp_path / "items.csv"), columns=columns))
    assert fault == "documents, line 6: doc_id 'a' stands here again with another text"


def test_a_row_without_ids_of_its_own_is_named_by_the_start_of_its_texts(tmp_path: Path) -> None:
    long = "a very long\tquery that goes on and on, longer than a line"
    rows = [(long, "", "a pot", 1), (long, "", "a pan", 2), (long, "", "a pan", 3), ("knife", "a\x00b", "steel", 1)]
    frame = pd.DataFrame(rows, columns=["query", "title", "text", "grade"])
    frame.to_json(tmp_path / "own.jsonl", orient="records", lines=True)
    own = SourceConfig(path=str(tmp_path / "own.jsonl"), columns={**COLUMNS, "text": "text"})
    assert faults(own) == [
        "documents, line 4: title contains a NUL character",
        "judgments, line 4: document 'a b' cannot be used",
        "judgments, line 3: query 'a very long query that goes on and on, l…', document 'a pan' has grade 3 here and "
        "2 before",
    ]


def test_ids_of_the_source_are_named_as_they_are(tmp_path: Path) -> None:
    rows = ["qid,query,id,title,grade", "q1,pan,d1,a pan,1", "q1,pan,d1,a pan,2"]
    (tmp_path / "own.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    columns = {**COLUMNS, "query_id": "qid", "doc_id": "id"}
    own = SourceConfig(path=str(tmp_path / "own.csv"), columns=columns)
    assert faults(own) == ["judgments, line 3: query_id 'q1', doc_id 'd1' has grade 2 here and 1 before"]


def test_conflicts_and_rows_of_a_database_are_named_alike(tmp_path: Path) -> None:
    rows = [("a pan", "pan", 1), ("a pan", "pan", 2), ("a pot", "pot", 99)]
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table documents (title text, query text, grade integer)")
        connection.executemany("insert into documents values (?, ?, ?)", rows)
    connection.close()
    frame = pd.DataFrame(rows, columns=["title", "query", "grade"])
    frame.to_csv(tmp_path / "own.csv", index=False)
    own = {f"sqlite:///{tmp_path}/shop.db": ("row 3", "row 2"), tmp_path / "own.csv": ("line 4", "line 3")}
    for path, locations in own.items():
        source = SourceConfig(path=str(path), columns=COLUMNS)
        high, conflict = faults(source)
        assert high.startswith(f"judgments, {locations[0]}: grade 99")
        assert conflict == f"judgments, {locations[1]}: query 'pan', document 'a pan' has grade 2 here and 1 before"
        with pytest.raises(SchemaError, match=rf"judgments, {locations[1]}: query 'pan', document .*data.conflicts"):
            judgments.make(tmp_path / "work", DataConfig(sources=(source,), faulty_rows="drop"))


def test_the_file_is_not_read_again_where_all_rows_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("query,title,grade\npan,a pan,1\n", encoding="utf-8")
    source = sources.read(SourceConfig(path=str(tmp_path / "own.csv"), columns=COLUMNS), Path())
    (tmp_path / "own.csv").unlink()
    assert validation.sift(source).findings == ()


def test_equal_judgments_are_counted_when_they_are_merged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = ["query,title,grade", *["pan,a pan,1"] * 3, "pan,a pan,2", "pot,a pot,0"]
    (tmp_path / "own.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    source = SourceConfig(path=str(tmp_path / "own.csv"), columns=COLUMNS)
    (report,) = check.examine([source], Path())
    notice = report.noticed["equal judgments of one pair, which are merged"]
    assert (notice.count, notice.examples[0]) == (2, "pan: a pan")
    with caplog.at_level("INFO"):
        judgments.make(tmp_path / "work", DataConfig(sources=(source,), conflicts="max"))
    assert "data: judgments merged with an equal one of their pair: 2" in caplog.messages
    assert 'data: judgments of another grade merged by data.conflicts = "max": 1' in caplog.messages
