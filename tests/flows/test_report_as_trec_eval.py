"""Reports on run files give trec_eval's numbers, whatever a collection's judgments look like."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytrec_eval

from flows import notebook, sources
from flows import report as reporting
from pipeline.config import DataConfig, SourceConfig
from pipeline.data import judgments
from pipeline.data.formats import qrels_file
from pipeline.errors import ConfigError, InputError, SchemaError
from pipeline.evaluation import runs
from pipeline.evaluation.runs import RunFile

TREC = {"ndcg_cut_10": "ndcg@10", "map": "map", "recip_rank": "mrr", "recall_10": "recall@10", "set_recall": "recall"}
"""trec_eval's names and ours."""


def write_collection(folder: Path, rng: np.random.Generator) -> tuple[dict[str, dict[str, int]], Path]:
    """A TREC collection and a run; a third of the judged documents is missing from the collection.

    Grades are -2 to 3, and every other one is written with ".0".
    """
    names = [f"d{number}" for number in range(60)]
    folder.mkdir()
    lines = [f"{name}\tthe text of document {name}" for name in names[:40]]
    (folder / "collection.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    queries = [f"q{number}" for number in range(30)]
    lines = [f"{query}\tthe text of query {query}" for query in queries]
    (folder / "queries.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    qrels = {
        query: {
            str(doc): int(rng.integers(-2, 4)) for doc in rng.choice(names, size=rng.integers(1, 25), replace=False)
        }
        for query in queries
    }
    endings = ("", ".0")
    pairs = [(query, doc, grade) for query, grades in qrels.items() for doc, grade in grades.items()]
    lines = [f"{query} 0 {doc} {grade}{endings[row % 2]}" for row, (query, doc, grade) in enumerate(pairs)]
    (folder / "qrels.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = [
        f"{query} Q0 {doc} 1 {int(rng.integers(-3, 4)) / 3} system"
        for query in queries[2:]
        for doc in rng.choice(names, size=rng.integers(1, 40), replace=False)
    ]
    run = folder.parent / "run.txt"
    run.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return qrels, run


@pytest.mark.parametrize("seed", range(4))
def test_report_and_notebook_equal_trec_eval_query_by_query(tmp_path: Path, seed: int) -> None:
    qrels, run = write_collection(tmp_path / "collection", np.random.default_rng(seed))
    with run.open(encoding="utf-8") as file:
        ranked = pytrec_eval.parse_run(file)
    # pytrec_eval reads beyond its arrays where a grade is negative, so it is given the 0 that trec_eval counts.
    counted = {query: {doc: max(grade, 0) for doc, grade in grades.items()} for query, grades in qrels.items()}
    judge = pytrec_eval.RelevanceEvaluator(counted, {"ndcg_cut.10", "map", "recip_rank", "recall.10", "set_recall"})
    expected = judge.evaluate(ranked)
    source = SourceConfig(path=str(tmp_path / "collection"))
    report = reporting.report_on_run(source, tmp_path / "workspace", run=RunFile(run))
    values = pd.read_parquet(report.file("per_query.parquet")).set_index("query_id")
    qrels_alone = SourceConfig(path=str(tmp_path / "collection" / "qrels.txt"))
    alone = reporting.report_on_run(qrels_alone, tmp_path / "workspace", run=RunFile(run))
    assert values.equals(pd.read_parquet(alone.file("per_query.parquet")).set_index("query_id")[values.columns])
    assert set(values.index) == set(qrels)
    means = notebook.judge(run, tmp_path / "collection" / "qrels.txt", list(TREC.values())).set_index("measure")["mean"]
    for theirs, ours in TREC.items():
        for query in qrels:
            assert values.loc[query, ours] == pytest.approx(expected.get(query, {}).get(theirs, 0.0), abs=1e-9)
        assert means[ours] == pytest.approx(values[ours].mean(), abs=1e-9)


def test_a_run_that_changes_while_it_is_read_is_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run = write_collection(tmp_path / "collection", np.random.default_rng(0))
    real = runs.read

    def read_slowly(path: Path, *rest: Any, **named: Any) -> Any:
        table = real(path, *rest, **named)
        path.write_text(path.read_text(encoding="utf-8").replace("system", "another"), encoding="utf-8")
        return table

    monkeypatch.setattr(runs, "read", read_slowly)
    source = SourceConfig(path=str(tmp_path / "collection"))
    with pytest.raises(SchemaError, match=r"run\.txt: changed while it was read"):
        reporting.report_on_run(source, tmp_path / "workspace", run=RunFile(run))


def test_a_qrels_file_alone_is_refused_where_texts_of_queries_are_needed(tmp_path: Path) -> None:
    write_collection(tmp_path / "collection", np.random.default_rng(0))
    source = SourceConfig(path=str(tmp_path / "collection" / "qrels.txt"), format="qrels")
    with pytest.raises(ConfigError, match="no texts of queries, so nothing can learn from it"):
        judgments.make(tmp_path / "workspace", DataConfig(sources=(source,)))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("qrels.txt", "q1 0 d1 1\nq1 0 d2 0\n", True),
        ("qrels", "q1\tQ0\td1\t-1\n", True),
        ("qrels.test.tsv", "1 0 7 2.0\n", True),
        ("run.txt", "q1 Q0 d1 1 2.5 system\n", False),
        ("ratings.tsv", "query\ttitle\ttext\tgrade\n", False),
        ("ratings.csv", "a 0 b 1\n", False),
        ("ratings.NDJSON", "a 0 b 1\n", False),
        ("empty.txt", "", False),
        ("blank.txt", "\n \n\r\nq1 0 d1 1\n", True),
        ("marked.txt", "\ufeff\nq1 0 d1 1\n", True),
        ("blanks.txt", "\n\n", False),
    ],
)
def test_a_qrels_file_is_known_by_its_first_line(tmp_path: Path, name: str, text: str, expected: bool) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert qrels_file.is_qrels(tmp_path / name) is expected
    assert not qrels_file.is_qrels(tmp_path)


def test_run_and_qrels_in_each_others_place_are_named_with_the_option_that_takes_them(tmp_path: Path) -> None:
    _, run = write_collection(tmp_path / "collection", np.random.default_rng(0))
    qrels = tmp_path / "collection" / "qrels.txt"
    for name in ("run.txt", "run.tsv"):
        swapped = run.rename(tmp_path / name)
        with pytest.raises(InputError, match=rf"{name}: is a TREC run file .*`relevance report --run {swapped} "):
            reporting.report_on_run(sources.of_judgments(str(swapped)), tmp_path / "workspace", run=RunFile(qrels))
        run = swapped
    with pytest.raises(InputError, match=rf"is a TREC qrels file .*`relevance report --run RUN --judgments {qrels}`"):
        reporting.report_on_run(sources.of_judgments(str(qrels)), tmp_path / "workspace", run=RunFile(qrels))


def test_a_run_of_other_queries_is_refused_with_ids_of_both(tmp_path: Path) -> None:
    write_collection(tmp_path / "collection", np.random.default_rng(0))
    run = tmp_path / "other.txt"
    run.write_text("x1 Q0 d1 1 2.0 system\n", encoding="utf-8")
    source = SourceConfig(path=str(tmp_path / "collection"))
    with pytest.raises(SchemaError, match=r"none of which is judged; its ids are such as 'x1', those .* such as '"):
        reporting.report_on_run(source, tmp_path / "workspace", run=RunFile(run))


def test_a_mean_that_no_query_gives_is_no_zero_in_the_table() -> None:
    systems = {"BM25": {"measures": {"ndcg@10": {"mean": 0.51234}, "pairwise": {"mean": None}}}}
    assert reporting.rows({"systems": systems}) == [{"system": "BM25", "ndcg@10": 0.5123, "pairwise": None}]
