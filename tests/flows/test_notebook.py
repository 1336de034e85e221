"""Each call of the Python API, held against what the command line or another library gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytrec_eval

from flows import ask, notebook
from pipeline.errors import MissingError, SchemaError
from pipeline.evaluation import runs
from serving.errors import InvalidRequestError
from serving.scoring.reranker import relevance
from tests.flows.conftest import Trained
from tests.serving.conftest import TinyWorkspace

RUN = "q1 Q0 d1 1 3.0 a\nq1 Q0 d2 2 2.0 a\nq1 Q0 d3 3 1.0 a\nq2 Q0 d2 1 2.0 a\nq2 Q0 d4 2 1.0 a\n"
WORSE = "q1 Q0 d3 1 3.0 b\nq1 Q0 d2 2 2.0 b\nq1 Q0 d1 3 1.0 b\nq2 Q0 d4 1 2.0 b\n"
QRELS = "q1 0 d1 2\nq1 0 d2 1\nq1 0 d3 0\nq2 0 d2 1\n"


@pytest.fixture(scope="module")
def release(trained: Trained) -> notebook.OpenRelease:
    return notebook.open_release(trained.workspace)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    texts = {"run.txt": RUN, "worse.txt": WORSE, "qrels.txt": QRELS}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return {name.removesuffix(".txt"): tmp_path / name for name in texts}


def test_search_gives_the_order_of_the_command_line(release: notebook.OpenRelease, trained: Trained) -> None:
    query = trained.outcome.report.fingerprint[:3] + " apple"
    expected = ask.search(query, trained.workspace, top=5)["reranked"]
    answers = release.search(query, top=5)
    assert list(answers["doc_id"]) == [answer["doc_id"] for answer in expected]
    assert list(answers["score"]) == [answer["score"] for answer in expected]


def test_rerank_gives_the_order_of_the_service(release: notebook.OpenRelease) -> None:
    texts = ["one", "two words", "three more words"]
    table = release.rerank("words", texts)
    scores = release._searcher.rerank("words", texts).values
    assert list(table["score"]) == sorted(scores, reverse=True)
    assert [scores[index] for index in table["index"]] == list(table["score"])
    alone = release.scores("words", texts)
    assert list(table["relevance"]) == pytest.approx([relevance(alone[index]) for index in table["index"]])
    assert [texts[index] for index in table["index"]] == list(table["text"])


def test_embed_gives_unit_vectors(release: notebook.OpenRelease) -> None:
    vectors = release.embed(["one", "two"], role="query")
    assert vectors.shape[0] == 2
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_report_is_the_one_that_the_release_was_judged_by(release: notebook.OpenRelease, trained: Trained) -> None:
    assert "fused" in release.report()["systems"]
    assert release.fingerprint == trained.outcome.release.fingerprint


def test_a_folder_that_is_not_there_has_no_list_of_releases(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="workspac: no such folder"):
        notebook.list_releases(tmp_path / "workspac")


def test_list_releases_names_the_live_one(trained: Trained) -> None:
    assert trained.outcome.release.fingerprint in set(notebook.list_releases(trained.workspace)["release"])


def test_retrain_takes_finished_stages_as_they_are(trained: Trained) -> None:
    overrides = [f"data.root={trained.world}"]
    again = notebook.retrain(trained.world / "tiny.toml", trained.workspace, overrides)
    assert again.release.fingerprint == trained.outcome.release.fingerprint


def test_judge_agrees_with_trec_eval(files: dict[str, Path]) -> None:
    evaluator = pytrec_eval.RelevanceEvaluator(
        {"q1": {"d1": 2, "d2": 1, "d3": 0}, "q2": {"d2": 1}}, {"ndcg_cut_10", "recip_rank"}
    )
    theirs = evaluator.evaluate({"q1": {"d3": 3.0, "d2": 2.0, "d1": 1.0}, "q2": {"d4": 2.0}})
    table = notebook.judge(files["worse"], files["qrels"], ["ndcg@10", "mrr"]).set_index("measure")["mean"]
    assert table["ndcg@10"] == pytest.approx(np.mean([query["ndcg_cut_10"] for query in theirs.values()]), abs=1e-9)
    assert table["mrr"] == pytest.approx(np.mean([query["recip_rank"] for query in theirs.values()]), abs=1e-9)


def test_compare_is_the_mean_of_paired_differences(files: dict[str, Path]) -> None:
    difference = notebook.compare(files["run"], files["worse"], files["qrels"])
    means = [notebook.judge(files[name], files["qrels"], ["ndcg@10"])["mean"][0] for name in ("run", "worse")]
    assert difference.mean == pytest.approx(means[0] - means[1])
    assert difference.queries == 2


def test_a_run_with_ids_of_other_judgments_is_refused(files: dict[str, Path]) -> None:
    files["qrels"].write_text(QRELS.replace("q", "topic-"), encoding="utf-8")
    with pytest.raises(SchemaError, match=r"none of which is judged; its ids are such as 'q1'.*'topic-1'"):
        notebook.judge(files["run"], files["qrels"])


def test_one_system_of_a_file_of_several_is_judged(files: dict[str, Path], tmp_path: Path) -> None:
    both = tmp_path / "both.parquet"
    tables = {name: runs.read(files[name], name) for name in ("run", "worse")}
    named = [table.append_column("system", pa.array([name] * len(table))) for name, table in tables.items()]
    pq.write_table(pa.concat_tables(named), both)
    for name in ("run", "worse"):
        expected = notebook.judge(files[name], files["qrels"])
        pd.testing.assert_frame_equal(notebook.judge(f"{both}:{name}", files["qrels"]), expected)


def test_a_filter_takes_a_single_value_and_no_result_has_the_columns_of_one(tiny: TinyWorkspace) -> None:
    release = notebook.open_release(tiny.path)
    alone, listed = (release.search("list", filters={"kind": kind}) for kind in ("class", ["class"]))
    assert len(alone)
    assert list(alone["doc_id"]) == list(listed["doc_id"])
    nothing = release.search("list", filters={"kind": "no such kind"})
    assert (list(nothing.columns), len(nothing)) == (list(alone.columns), 0)
    for top in (0, -1):
        with pytest.raises(InvalidRequestError, match=f"top is {top}"):
            release.search("list", top=top)


def test_one_text_in_place_of_several_is_refused(tiny: TinyWorkspace) -> None:
    release = notebook.open_release(tiny.path)
    calls: tuple[Callable[[Any], Any], ...] = (
        release.embed,
        lambda texts: release.rerank("list", texts),
        lambda texts: release.scores("list", texts),
    )
    for call in calls:
        with pytest.raises(InvalidRequestError, match="give a list"):
            call("a text")
        assert len(call([])) == 0


def test_a_release_that_is_not_there_is_refused_by_name(trained: Trained) -> None:
    with pytest.raises(MissingError, match="ffff"):
        notebook.open_release(trained.workspace, "ffff")
