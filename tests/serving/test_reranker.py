import math
import time
from collections.abc import Sequence

import numpy as np
import pytest

from serving.deadline import Deadline
from serving.errors import ClientGoneError, DeadlineError, InferenceError
from serving.reranker import CHUNK, Caches, Embedder, Reranker, relevance

NEVER = Deadline.never()


class FakeRanker:
    """Scores by length; fails on 'bad', gives NaN on 'nan'."""

    def __init__(self, digest: str = "d1", precision: str = "fp32", seconds: float = 0.0) -> None:
        self.digest, self.precision, self.seconds = digest, precision, seconds
        self.calls: list[int] = []

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        self.calls.append(len(documents))
        time.sleep(self.seconds)
        if "bad" in documents:
            raise RuntimeError("the kernel does not like it")
        return [math.nan if document == "nan" else float(len(query) * len(document)) for document in documents]


class FakeEncoder:
    digest, precision = "e1", "fp32"

    def embed(self, texts: Sequence[str], role: str) -> np.ndarray:
        return np.array([[len(item), len(role)] for item in texts], np.float32)


def reranker(engine: FakeRanker, caches: Caches | None = None) -> Reranker:
    return Reranker(engine, (caches or Caches.of(1 << 20)).scores)


def test_scores_are_the_engines_in_the_order_of_the_documents() -> None:
    engine = FakeRanker()
    documents = ["x" * place for place in range(40)]
    found = reranker(engine).scores("qq", documents, NEVER)
    assert found.values == [2.0 * place for place in range(40)]
    assert engine.calls == [CHUNK, CHUNK, 40 - 2 * CHUNK]


@pytest.mark.parametrize("wrong", ["bad", "nan"])
def test_a_bad_document_is_named_and_its_neighbours_are_kept(wrong: str) -> None:
    engine = FakeRanker()
    found = reranker(engine)
    with pytest.raises(InferenceError, match="document 2"):
        found.scores("q", ["a", "bb", wrong, "cccc"], NEVER)
    engine.calls.clear()
    assert found.scores("q", ["a", "bb", "cccc"], NEVER).hits == 3
    assert engine.calls == []


def test_another_model_precision_or_query_never_gets_an_old_score() -> None:
    caches = Caches.of(1 << 20)
    for digest, precision, query in [
        ("d1", "fp32", "q"),
        ("d2", "fp32", "q"),
        ("d1", "int8", "q"),
        ("d1", "fp32", "Q"),
    ]:
        assert reranker(FakeRanker(digest, precision), caches).scores(query, ["a"], NEVER).misses == 1
    assert reranker(FakeRanker("d1", "fp32"), caches).scores("q", ["a"], NEVER).hits == 1


def test_texts_are_cleaned_before_they_are_hashed() -> None:
    found = reranker(FakeRanker())
    assert found.scores("q\x00", ["lone \ud800", "nul\x00"], NEVER).misses == 2
    assert found.scores("q ", ["lone \ufffd", "nul "], NEVER).hits == 2


def test_a_deadline_stops_between_chunks_and_the_rest_goes_on_from_there() -> None:
    engine = FakeRanker(seconds=0.03)
    found = reranker(engine)
    documents = ["x" * place for place in range(10 * CHUNK)]
    with pytest.raises(DeadlineError, match=r"0\.05 s"):
        found.scores("q", documents, Deadline.after(0.05))
    assert 1 <= len(engine.calls) <= 3
    engine.seconds = 0.0
    assert found.scores("q", documents, NEVER).hits >= CHUNK


def test_a_cancelled_request_computes_nothing_more() -> None:
    engine, deadline = FakeRanker(), Deadline.after(10)
    deadline.cancel()
    with pytest.raises(ClientGoneError):
        reranker(engine).scores("q", ["a"], deadline)
    assert engine.calls == []


def test_vectors_are_kept_by_role_and_cannot_be_written_to() -> None:
    embedder = Embedder(FakeEncoder(), Caches.of(1 << 20).vectors)
    (query,) = embedder.vectors(["abc"], "query", NEVER).values
    found = embedder.vectors(["abc"], "document", NEVER)
    assert found.misses == 1
    assert query.tolist() == [3, len("query")]
    assert found.values[0].tolist() == [3, len("document")]
    with pytest.raises(ValueError, match="read-only"):
        query[0] = 1


@pytest.mark.parametrize("score", [-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4])
def test_relevance_is_a_sigmoid_that_never_overflows(score: float) -> None:
    assert 0 <= relevance(score) <= 1
    assert relevance(score) + relevance(-score) == pytest.approx(1)
    if abs(score) < 100:
        assert relevance(score) == pytest.approx(1 / (1 + math.exp(-score)))
