"""Each call of the Python API, held against what the command line or another library gives."""

from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from flows import ask, notebook
from pipeline.errors import MissingError
from serving.scoring.reranker import relevance
from tests.flows.conftest import Trained

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


def test_a_release_that_is_not_there_is_refused_by_name(trained: Trained) -> None:
    with pytest.raises(MissingError, match="ffff"):
        notebook.open_release(trained.workspace, "ffff")
