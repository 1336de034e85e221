"""The projection that is learned from judged queries: it finds the judged documents, and the body stays as it is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline import artifacts, schema
from pipeline.artifacts import Artifact
from pipeline.config import EncoderConfig
from pipeline.errors import ConfigError, TrainingError
from pipeline.models.bi_encoder import BiEncoder
from pipeline.training.tasks import judged_projection
from pipeline.training.tasks.judged_projection import BestPairs, JudgedProjectionTask
from tests.pipeline.training.tasks.test_projection import WORDS, base, start

__all__ = ["base"]  # The fixture.

CONFIG = EncoderConfig(dimensions=6, widths=(3,), max_tokens=20, max_query_tokens=6, in_batch_weight=1.0)


def data(workspace: Path, count: int) -> Artifact:
    """Documents of random words; each query has two words of its document, of grade 2, and another of grade 1."""
    draw = np.random.default_rng(1)
    texts = [draw.choice(WORDS, size=8, replace=False).tolist() for _ in range(count)]
    judged = []
    for number in range(count):
        split = "train" if number % 4 else "test"
        for other, grade in ((number, 2), ((number + 1) % count, 1)):
            judged.append({"query_id": f"q{number}", "doc_id": f"d{other}", "grade": grade, "split": split})
    tables = {
        "documents": [{"doc_id": f"d{n}", "title": "", "text": " ".join(words)} for n, words in enumerate(texts)],
        "queries": [{"query_id": f"q{n}", "text": " ".join(words[:2])} for n, words in enumerate(texts)],
        "judgments": judged,
    }

    def build(staging: artifacts.Staging) -> dict[str, Any]:
        for name, rows in tables.items():
            schema.write(pa.Table.from_pylist(rows), staging.folder / f"{name}.parquet", name)
        return {}

    return artifacts.make(workspace, "data", version=1, config={"count": count}, inputs={}, build=build)


def test_best_pairs_are_those_of_the_highest_grade_of_training_queries(tmp_path: Path) -> None:
    best = judged_projection.best_pairs(data(tmp_path, 40), seed=1, most=40)
    texts = {(best.queries[query], best.documents[document]) for query, document in best.pairs}
    assert len(texts) == len(best.queries) == 30  # Three quarters are training queries.
    assert all(document.split()[:2] == query.split() for query, document in texts)
    assert len(best.documents) == 40
    assert len(best.known) == 60
    assert {query * 40 + document for query, document in best.pairs} < set(best.known.tolist())


def test_fewer_documents_are_first_those_that_were_judged_best(tmp_path: Path) -> None:
    every_document, judged = (judged_projection.best_pairs(data(tmp_path, 40), seed=1, most=most) for most in (40, 33))
    assert (judged.documents, judged.queries) == (every_document.documents[:33], every_document.queries)
    fewer = judged_projection.best_pairs(data(tmp_path, 40), seed=1, most=20)
    assert len(fewer.documents) == len(fewer.queries) == 20
    assert fewer.pairs.max() < 20


def test_queries_find_their_documents_better_and_the_body_is_untouched(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judged_projection, "STEPS", 120)
    monkeypatch.setattr(judged_projection, "BATCH", 64)
    judged_data, model = data(tmp_path, 240), start(base)
    best = judged_projection.best_pairs(judged_data, CONFIG.loop.seed, 240)

    def share_found(encoder: BiEncoder) -> float:
        """Mean cosine with a query's own document, less that with the others, of the pairs learned from."""
        with torch.no_grad():
            queries, documents = (
                F.normalize(encoder.dense(torch.from_numpy(vectors)), dim=1) for vectors in vectors_of(encoder, best)
            )
        cosines = queries[best.pairs[:, 0]] @ documents.T
        own = cosines[torch.arange(len(best.pairs)), torch.from_numpy(best.pairs[:, 1])]
        return float((own - cosines.mean(1)).mean())

    model.fit_projection(F.normalize(torch.from_numpy(vectors_of(model, best)[1]), dim=1), about="origin")
    before = share_found(model)
    body = {name: value.clone() for name, value in model.model.state_dict().items()}
    judged_projection.fit(model, judged_data, CONFIG, tmp_path / "first")
    assert share_found(model) > 2 * before > 0
    assert all(torch.equal(value, body[name]) for name, value in model.model.state_dict().items())
    again = start(base)
    judged_projection.fit(again, judged_data, CONFIG, tmp_path / "again")
    assert torch.equal(again.dense.weight, model.dense.weight)


def vectors_of(encoder: BiEncoder, best: BestPairs) -> tuple[Any, Any]:
    from pipeline.training.loop import pair_tokens, scoring

    pooled = []
    for texts, template in ((best.queries, encoder.query_template), (best.documents, encoder.document_template)):
        tokens = pair_tokens.tokenise(encoder.tokenizer, texts, template.max_tokens, "texts")
        pooled.append(scoring.vectors(encoder, tokens, np.arange(len(texts)), template, label="texts", pooled=True))
    return pooled[0], pooled[1]


def test_a_judged_document_is_no_negative_whatever_its_grade(base: Path) -> None:
    draw = torch.Generator().manual_seed(3)
    queries, documents = torch.randn(5, 32, generator=draw), torch.randn(6, 32, generator=draw)
    pairs = np.array([[number, number] for number in range(5)])
    own = np.array([number * 6 + number for number in range(5)])
    every = np.arange(30)  # Each query was judged with each document.
    config = replace(CONFIG, widths=())
    losses = []
    for known in (own, every):
        best = BestPairs([""] * 5, [""] * 6, pairs, known)
        task = JudgedProjectionTask(start(base).dense, queries, documents, best, config)
        losses.append(task.loss((np.arange(4), np.array([5])))[1]["contrast"].item())
    assert losses[0] > 0.1
    assert losses[1] == pytest.approx(0.0, abs=1e-6)


def test_each_pair_is_learned_from_once_an_epoch_and_none_that_is_measured(base: Path) -> None:
    pairs = np.stack([np.arange(700), np.arange(700)], axis=1)
    best = BestPairs([""] * 700, [""] * 700, pairs, pairs[:, 0] * 701)
    task = JudgedProjectionTask(start(base).dense, torch.zeros(700, 32), torch.zeros(700, 32), best, CONFIG)
    learned = np.concatenate([part for step in task.plan(0) for part, _ in step.chunks])
    assert sorted(learned.tolist()) == list(range(len(task.pairs)))
    assert not {tuple(pair) for pair in task.pairs.tolist()} & {tuple(pair) for pair in task.held_out.tolist()}


@given(st.lists(st.integers(0, 40), min_size=10, max_size=300).filter(lambda queries: len(set(queries)) > 1))
def test_no_query_is_both_learned_from_and_measured(queries: list[int]) -> None:
    pairs = np.array(queries)
    held = judged_projection.held_out(pairs)
    assert held.any()
    assert not held.all()
    assert not set(pairs[held]) & set(pairs[~held])
    assert held.sum() <= max(len(pairs) // 5, (pairs == pairs[0]).sum())
    assert held[0]


def test_of_queries_with_one_pair_each_the_first_fifth_is_measured() -> None:
    for count, measured in ((10, 2), (700, 140), (5000, 400)):
        assert np.flatnonzero(judged_projection.held_out(np.arange(count)[::-1])).tolist() == list(range(measured))


def test_a_pair_that_was_judged_twice_is_learned_from_once(tmp_path: Path) -> None:
    judged = data(tmp_path, 40)
    table = schema.read(judged.file("judgments.parquet"), "judgments")
    again = table.append_column("source", pa.array(["click"] * len(table), pa.string()))
    table = table.append_column("source", pa.array(["human"] * len(table), pa.string()))
    judged.file("judgments.parquet").unlink()  # A file that may be shared with others of its content.
    schema.write(pa.concat_tables([table, again]), judged.file("judgments.parquet"), "judgments")
    best = judged_projection.best_pairs(judged, seed=1, most=40)
    assert len({tuple(pair) for pair in best.pairs.tolist()}) == len(best.pairs) == 30


def test_too_few_judged_queries_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="6 judged pairs of 6 training queries and 8 documents"):
        judged_projection.fit(start(base), data(tmp_path, 8), CONFIG, tmp_path / "few")


def test_a_body_that_is_not_trained_has_no_later_rounds() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.mining\.rounds"):
        EncoderConfig(train_body=False, mining={"rounds": 2})  # type: ignore[arg-type]


@given(
    known=st.sets(st.tuples(st.integers(0, 6), st.integers(0, 8))),
    queries=st.lists(st.integers(0, 6), min_size=1, max_size=9),
    documents=st.lists(st.integers(0, 8), min_size=1, max_size=9),
)
def test_judged_pairs_of_a_step_are_those_of_the_table(
    known: set[tuple[int, int]], queries: list[int], documents: list[int]
) -> None:
    keys = np.array(sorted(query * 9 + document for query, document in known), dtype=np.int64)
    best = BestPairs([""] * 7, [""] * 9, np.zeros((10, 2), np.int64), keys)
    task = JudgedProjectionTask(torch.nn.Linear(4, 2), torch.zeros(7, 4), torch.zeros(9, 4), best, CONFIG)
    judged = task.judged(np.array(queries), np.array(documents))
    assert judged.tolist() == [[(query, document) in known for document in documents] for query in queries]
