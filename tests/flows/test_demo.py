"""The demo beside its retraining: whole documents to search, and plain questions to them."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import demo, plausibility, publishing, summary
from index.corpus_change import CorpusChange
from pipeline import config
from pipeline.data.formats import python_docs
from pipeline.releases import Releases
from tests.benchmarks import test_plain_questions
from tests.flows.conftest import Trained


def with_summaries(copied: Trained, folder: Path) -> SimpleNamespace:
    """The documents of the live release, each with a summary apart from its text."""
    registry = Releases(copied.workspace)
    documents = publishing.documents_of(registry, registry.open())
    table = pq.read_table(documents.file("documents.parquet"))
    draw = np.random.default_rng(5)
    own_words = [" ".join("".join(draw.choice(list("abcdefghij"), 7)) for _ in range(30)) for _ in range(len(table))]
    summaries = [
        f"Finds {doc_id} among {words}" for doc_id, words in zip(table["doc_id"].to_pylist(), own_words, strict=True)
    ]
    pq.write_table(table.append_column(python_docs.SUMMARY, pa.array(summaries)), folder / "documents.parquet")
    return SimpleNamespace(file=folder.joinpath)


def test_summaries_are_searched_after_a_retraining_that_did_not_see_them(
    copied: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    documents = with_summaries(copied, tmp_path)
    monkeypatch.setattr(publishing, "documents_of", lambda *_: documents)
    monkeypatch.setattr(demo, "QUESTIONS", {"finds d7 among": ("d7",), "finds d9 among": ("nothing",)})
    before = Releases(copied.workspace).open()
    gone = CorpusChange(ids_kept=1, changed=1, shortened=0, alike=(0, 0), fields_gone=(python_docs.SUMMARY,))
    monkeypatch.setattr(plausibility, "compare", lambda *_: gone)
    served = demo.serve_whole_documents(copied.outcome, copied.workspace)
    live = Releases(copied.workspace).open()
    assert served is not None
    assert served["live"]
    assert not [message for message in caplog.messages if "any more" in message]  # Its summaries stand in the texts.
    assert live.fingerprint == served["release"] != before.fingerprint
    questions = demo.ask(copied.workspace)
    assert questions["answered"] == ["finds d7 among"]
    refitted = {"seconds": 1.0, "queries": 9, "changed": True, "ndcg@10, before": 0.5, "ndcg@10, fused": 0.6}
    card = summary.make(copied.outcome, copied.workspace, served=served, refitted=refitted, questions=questions)
    assert card["live_release"] == served["release"]
    lines = summary.served_lines(card)
    assert any("9 plain questions" in line and "0.6000" in line for line in lines)
    assert any("1 of 2 plain ones" in line and "finds d9 among" in line for line in lines)
    assert demo.serve_whole_documents(copied.outcome, copied.workspace) is not None  # Again: the same, and still live.
    assert Releases(copied.workspace).open().fingerprint == served["release"]


def test_documents_that_the_training_left_out_are_served_too(
    copied: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = with_summaries(copied, tmp_path)
    trained = pq.read_table(documents.file("documents.parquet"))
    other = trained.slice(0, 1).set_column(0, "doc_id", pa.array(["left.out"], trained.schema.field(0).type))
    monkeypatch.setattr(python_docs, "read_documents", lambda: pa.concat_tables([trained, other]))
    python_api = config.DataConfig(sources=(config.SourceConfig(path=".", format=python_docs.NAME),))
    tables = config.DataConfig(sources=(config.SourceConfig(path="tiny"),))
    for data, more in ((python_api, ["left.out"]), (tables, []), (None, [])):
        assert demo.write_whole_documents(documents, tmp_path / "file.parquet", data)  # type: ignore[arg-type]
        served = pq.read_table(tmp_path / "file.parquet")
        assert served["doc_id"].to_pylist() == [*trained["doc_id"].to_pylist(), *more]
        assert all(text.startswith("Finds ") for text in served["text"].to_pylist())


def test_a_full_disk_leaves_the_documents_of_before(
    copied: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = with_summaries(copied, tmp_path)
    file = tmp_path / "demo" / "documents.parquet"
    demo.write_whole_documents(documents, file, None)  # type: ignore[arg-type]
    before = file.read_bytes()

    def half(table: pa.Table, path: Path, **_: object) -> None:
        path.write_bytes(before[: len(before) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq, "write_table", half)
    with pytest.raises(OSError, match="No space left"):
        demo.write_whole_documents(documents, file, None)  # type: ignore[arg-type]
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_documents_without_summaries_apart_are_served_as_they_are(copied: Trained) -> None:
    before = Releases(copied.workspace).open().fingerprint
    assert demo.serve_whole_documents(copied.outcome, copied.workspace) is None
    assert Releases(copied.workspace).open().fingerprint == before
    assert not (copied.workspace / demo.DOCUMENTS).exists()


def test_the_order_is_learned_from_other_questions_than_those_that_are_put() -> None:
    lines = demo.LEARNED_FROM.read_text(encoding="utf-8").splitlines()
    learned = [json.loads(line) for line in lines]
    questions = [item["question"] for item in learned]
    assert len(set(questions)) == len(questions) > 150
    assert not set(questions) & {*demo.QUESTIONS, *test_plain_questions.QUESTIONS}
    assert all(item["answers"] for item in learned)


def test_questions_are_judged_by_the_documents_that_their_patterns_name(tmp_path: Path) -> None:
    doc_ids = ["os.makedirs", "fsspec.Local.makedirs", "os.makedirs2", "shutil.move", "nothing"]
    demo.write_judged_questions(doc_ids, tmp_path)
    queries, judgments = (pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("queries", "judgments"))
    texts = {item["query_id"]: item["text"] for item in queries}
    judged = {(texts[item["query_id"]], item["doc_id"], item["grade"]) for item in judgments}
    assert {item for item in judged if item[0] == "make a folder including its parents"} == {
        ("make a folder including its parents", name, 1) for name in ("os.makedirs", "fsspec.Local.makedirs")
    }
    assert set(texts.values()) == {text for text, *_ in judged}  # None is left that nothing answers.


def test_a_question_names_documents_that_can_be_its_answer() -> None:
    assert len(demo.QUESTIONS) >= 11
    assert all(patterns and len(set(patterns)) == len(patterns) for patterns in demo.QUESTIONS.values())


def test_plain_questions_are_answered_by_the_demo_of_this_folder() -> None:
    """Runs where `make demo` has left a workspace; the figure is the one on its card. RESULTS.md has 11 of 11."""
    workspace = Path(os.environ.get("RELEVANCE_WORKSPACE", "workspace"))
    if not (workspace / demo.DOCUMENTS).is_file():
        pytest.skip("needs the workspace of `make demo`")
    questions = demo.ask(workspace)
    assert len(questions["answered"]) >= 0.6 * questions["asked"], questions["results"]
