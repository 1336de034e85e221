"""TREC files are read as trec_eval's own parser reads them, and written so that it reads the same."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import pytrec_eval

from flows import sources as named
from pipeline.config import SourceConfig
from pipeline.data import sources
from pipeline.data.formats import trec_files
from pipeline.errors import InputError, MissingError, SchemaError
from pipeline.evaluation import runs


def test_qrels_agree_with_trec_eval(tmp_path: Path) -> None:
    path = tmp_path / "qrels.txt"
    path.write_text("q1 0 d1 2\nq1\t0\td2\t0\nq2  Q0   d1  1\n\nq3 0 d-9 -2\n")
    with path.open() as file:
        expected = pytrec_eval.parse_qrel(line for line in file if line.strip())
    grades: dict[str, dict[str, int]] = {}
    for row in trec_files.read_qrels(path).to_pylist():
        grades.setdefault(row["query_id"], {})[row["doc_id"]] = row["grade"]
    assert grades == expected


@pytest.mark.parametrize("seed", range(5))
def test_a_written_run_reads_back_the_same_and_as_trec_eval_reads_it(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(size=40) * 10.0 ** rng.integers(-30, 30, size=40), [0.1 + 0.2, -0.0, 1e300]])
    run = pa.table(
        {
            "query_id": [f"q{number % 3}" for number in range(len(scores))],
            "doc_id": [f"文档{number}" for number in range(len(scores))],
            "rank": [number // 3 + 1 for number in range(len(scores))],
            "score": scores,
            "system": ["bm25"] * len(scores),
        }
    )
    trec_files.write_run(run, tmp_path / "run.txt")
    back = trec_files.read_run(tmp_path / "run.txt")
    assert back.to_pylist() == run.to_pylist()
    with (tmp_path / "run.txt").open(encoding="utf-8") as file:
        theirs = pytrec_eval.parse_run(file)
    assert {(row["query_id"], row["doc_id"]): row["score"] for row in back.to_pylist()} == {
        (query, document): score for query, documents in theirs.items() for document, score in documents.items()
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"q1 0 d1\n", "line 1: 3 fields, not the 4"),
        (b"q1 0 d1 1\nq1 0 d2 high\n", "line 2: grade 'high' is not a whole number"),
        (b"q1 0 d1 1\nq1 0 d2 1_0\n", "line 2: grade '1_0' is not a whole number"),
        (b"q1 0 d1 99999999999999999999\n", "line 1: grade '9+' is not a whole number"),
        (b"q1 0 d1 1\nq\xff 0 d2 1\n", "line 2, byte 11: 0xff is not UTF-8"),
    ],
)
def test_qrels_that_cannot_be_read_name_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "qrels").write_bytes(content)
    with pytest.raises(SchemaError, match=message):
        trec_files.read_qrels(tmp_path / "qrels")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 Q0 d1 1 0.5", "5 fields, not the 6"),
        ("q1 Q0 d1 first 0.5 x", "rank 'first'"),
        ("q1 Q0 d1 1 nan x", "not a finite number"),
    ],
)
def test_a_run_that_cannot_be_read_names_the_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "run").write_text(line + "\n")
    with pytest.raises(SchemaError, match=message):
        trec_files.read_run(tmp_path / "run")


def test_a_document_that_a_system_ranks_twice_is_named_by_both_lines(tmp_path: Path) -> None:
    lines = ["q Q0 a 1 3 x", "", "q Q0 b 2 2 x", "q Q0 a 1 3 y", "", "q Q0 b 3 1 x"]
    (tmp_path / "run").write_text("\n".join(lines))
    with pytest.raises(SchemaError, match=r"run, line 6: document 'b' of query 'q' stands in line 3 already"):
        trec_files.read_run(tmp_path / "run")
    (tmp_path / "run").write_text("\n".join(lines[:-1]))
    assert trec_files.read_run(tmp_path / "run")["doc_id"].to_pylist() == ["a", "b", "a"]


def test_an_id_with_a_blank_cannot_be_written_and_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("old")
    run = {"query_id": ["q", "q"], "doc_id": ["a", "b c"], "rank": [1, 2], "score": [2.0, 1.0], "system": ["x", "x"]}
    with pytest.raises(SchemaError, match="row 2: doc_id 'b c'"):
        trec_files.write_run(pa.table(run), tmp_path / "run")
    assert (tmp_path / "run").read_text() == "old"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        trec_files.read_run(tmp_path / "run")


RUN, QRELS = "q1 Q0 d1 1 2.5 bm25\n", "q1 0 d1 2\n"


@pytest.mark.parametrize(("name", "format"), [("new.run", "auto"), ("run.tsv", "auto"), ("run", "qrels")])
def test_a_run_that_is_named_as_judgments_is_answered_with_the_command_that_judges_it(
    tmp_path: Path, name: str, format: str
) -> None:
    (tmp_path / name).write_text(RUN, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        sources.read(SourceConfig(path=str(tmp_path / name), format=format), Path())
    assert str(refused.value) == (
        f"{tmp_path / name}: is a TREC run file (query Q0 document rank score system), which ranks documents and "
        f"judges none. To judge it: `relevance report --run {tmp_path / name} --judgments QRELS`"
    )


def test_qrels_that_are_named_as_a_run_are_answered_with_the_command_that_judges_by_them(tmp_path: Path) -> None:
    (tmp_path / "my qrels").write_text(QRELS, encoding="utf-8")
    with pytest.raises(SchemaError) as refused:
        runs.read(tmp_path / "my qrels", "a")
    assert str(refused.value) == (
        f"{tmp_path}/my qrels: is a TREC qrels file (query iteration document grade), which judges documents and ranks "
        f"none. To judge a run by it: `relevance report --run RUN --judgments '{tmp_path}/my qrels'`"
    )


@pytest.mark.parametrize("line", ["q1 Q0 d1 first 2.5 x", "q1 Q0 d1 1 high x", "q1 Q0 d1 1 nan x", "a b c d e"])
def test_another_line_of_too_many_fields_is_no_run(tmp_path: Path, line: str) -> None:
    (tmp_path / "qrels").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(SchemaError, match="fields, not the 4 of"):
        trec_files.read_qrels(tmp_path / "qrels")


def test_a_folder_with_qrels_is_told_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "qrels.txt").write_text("q1 0 d1 1\n", encoding="utf-8")
    (tmp_path / "topics.tsv").write_text("q1\tknife\n", encoding="utf-8")
    with pytest.raises(MissingError, match=r"It has the qrels qrels\.txt; put the documents \(corpus\.jsonl or .*"):
        sources.read(named.with_columns(SourceConfig(path=str(tmp_path)), "judgments"), Path())
