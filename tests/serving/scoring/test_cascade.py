"""Reranking as far as the time goes: which documents get a score, and in what order all are given."""

import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serving.api import app as apps
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.scoring import cascade
from serving.scoring.embedder import Embedder
from serving.scoring.process_caches import Caches
from serving.scoring.reranker import Reranker, relevance
from tests.serving.fake_models import FakeEngine, length, two, until_late
from tests.serving.patience import PATIENCE_S, Clock

DOCUMENTS = ["aaa", "b", "cccc", "dd"]


def parts(engine: FakeEngine, encoder: FakeEngine | None = None) -> tuple[Reranker, Embedder]:
    caches = Caches.of(1 << 20)
    return Reranker(engine, caches.scores), Embedder(encoder or FakeEngine(two), caches.vectors)


def documents_run(engine: FakeEngine) -> list[str]:
    return [run[0].split("|")[1] for run in engine.runs]


def test_with_time_enough_it_is_a_rerank() -> None:
    result = cascade.rerank(
        *parts(FakeEngine(length)), "q", DOCUMENTS, [1, 2, 3, 4], RequestOptions(Deadline.after(PATIENCE_S))
    )
    assert (result.order, result.scores, result.reached) == ([2, 0, 3, 1], [3.0, 1.0, 4.0, 2.0], 4)


def test_the_best_of_the_first_stage_are_reached_and_the_rest_stays_in_its_order(clock: Clock) -> None:
    deadline = Deadline.after(PATIENCE_S)
    engine = FakeEngine(until_late(clock, 2))
    first = [1.0, 9.0, 3.0, 7.0]
    result = cascade.rerank(*parts(engine), "q", DOCUMENTS, first, RequestOptions(deadline))
    assert 1 <= result.reached <= 3
    before = [1, 3, 2, 0]
    reached, rest = result.order[: result.reached], result.order[result.reached :]
    assert sorted(reached) == sorted(before[: result.reached])
    assert rest == before[result.reached :]
    assert reached == sorted(reached, key=lambda index: -len(DOCUMENTS[index]))
    assert all(result.scores[index] is None for index in rest)


def test_without_a_deadline_the_first_stage_has_all_the_time_it_wants() -> None:
    """Half of an infinite time, taken off, is no number."""
    never = Deadline.never()
    assert never.earlier(0.5 * never.remaining) == never
    result = cascade.rerank(*parts(FakeEngine(length)), "q", DOCUMENTS, None, RequestOptions(never))
    assert (result.order, result.reached) == ([2, 0, 3, 1], 4)


def test_no_time_at_all_gives_the_first_stage() -> None:
    engine = FakeEngine(length)
    deadline = Deadline.after(0)
    result = cascade.rerank(*parts(engine), "q", DOCUMENTS, [1, 2, 4, 3], RequestOptions(deadline))
    assert (result.order, result.reached, engine.runs) == ([2, 3, 1, 0], 0, [])


def test_what_is_cached_needs_no_time() -> None:
    reranker, embedder = parts(FakeEngine(length))
    reranker.scores("q", ["cccc", "b"], RequestOptions(Deadline.never()))
    result = cascade.rerank(reranker, embedder, "q", DOCUMENTS, [4, 3, 2, 1], RequestOptions(Deadline.after(0)))
    assert result.order == [2, 1, 0, 3]
    assert (result.reached, result.hits) == (2, 2)


def test_an_overloaded_queue_is_no_error_and_work_joins_it_bit_by_bit(clock: Clock) -> None:
    deadline = Deadline.after(PATIENCE_S)
    engine = FakeEngine(until_late(clock, 30))
    engine.pace.ran(1, 100.0)  # So slow that any other request is refused.
    documents = [f"{'x' * index}" for index in range(200)]
    result = cascade.rerank(*parts(engine), "q", documents, [0.0] * 200, RequestOptions(deadline))
    assert 0 < result.reached < 200
    assert result.order[result.reached :] == list(range(result.reached, 200))
    assert len(engine.remembered) <= 4  # Chunks that were tokenised.


def test_without_scores_the_encoder_is_the_first_stage() -> None:
    vectors = {"query|q": [1.0, 0.0], "document|aaa": [0.1, 0], "document|b": [0.9, 0], "document|cccc": [0.5, 0]}
    encoder = FakeEngine(lambda text: two(text) * 0 + vectors.get(text, [0.0, 0.0]))
    engine = FakeEngine(length)
    cascade.rerank(*parts(engine, encoder), "q", DOCUMENTS, None, RequestOptions(Deadline.after(PATIENCE_S)))
    assert documents_run(engine) == ["b", "cccc", "aaa", "dd"]


def test_a_first_stage_that_takes_too_long_leaves_time_for_the_ranker(clock: Clock) -> None:
    deadline = Deadline.after(10 * PATIENCE_S)

    def says(text: str) -> Any:
        clock.ahead_s = 6 * PATIENCE_S  # More than the half that the first stage may take, and not all.
        return two(text)

    engine = FakeEngine(length)
    result = cascade.rerank(*parts(engine, FakeEngine(says)), "q", DOCUMENTS, None, RequestOptions(deadline))
    assert result.reached == 4
    assert documents_run(engine) == DOCUMENTS  # As they were given.


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=12).flatmap(
        lambda first: st.tuples(st.just(first), st.sets(st.integers(0, len(first) - 1)))
    )
)
@settings(deadline=None, max_examples=30)
def test_any_part_that_was_reached_stands_first(case: tuple[list[float], set[int]]) -> None:
    first, cached = case
    documents = [f"{'x' * (index * 7 % 5)}{index}" for index in range(len(first))]
    reranker, embedder = parts(FakeEngine(length))
    reranker.scores("q", [documents[index] for index in cached], RequestOptions(Deadline.never()))
    result = cascade.rerank(reranker, embedder, "q", documents, first, RequestOptions(Deadline.after(0)))
    assert sorted(result.order) == list(range(len(first)))
    assert set(result.order[: len(cached)]) == cached
    rest = result.order[len(cached) :]
    assert rest == sorted(rest, key=lambda index: (-first[index], index))


# Over HTTP.


def late_after(lifecycle: Any, monkeypatch: Any, clock: Clock, free: int) -> None:
    """Lets every deadline pass with the run of the ranker that follows the first ones."""
    begun = itertools.count()
    real = lifecycle.current.ranker.run

    def run(items: Sequence[Any]) -> Any:
        if next(begun) >= free:
            clock.ahead_s = 1000.0
        return real(items)

    monkeypatch.setattr(lifecycle.current.ranker, "run", run)


def held_back(lifecycle: Any, monkeypatch: Any, seconds: float) -> None:
    """Makes each run of the ranker take so long."""
    real = lifecycle.current.ranker.run

    def run(items: Sequence[Any]) -> Any:
        time.sleep(seconds)
        return real(items)

    monkeypatch.setattr(lifecycle.current.ranker, "run", run)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_objects_with_scores_are_reranked_as_far_as_the_time_goes(
    started: Any, monkeypatch: Any, clock: Clock, path: str
) -> None:
    lifecycle = started()
    client = TestClient(apps.create(lifecycle))
    late_after(lifecycle, monkeypatch, clock, free=3)
    documents = [{"text": f"a sorted list {index}", "score": index} for index in range(30)]
    body = {"query": "sort", "documents": documents, "cascade": True, "return_documents": True}
    response = client.post(path, json=body, headers={"x-request-timeout-ms": str(int(1000 * PATIENCE_S))})
    assert response.status_code == 200
    results = response.json()["results"]
    assert sorted(item["index"] for item in results) == list(range(30))
    marks = [item["reranked"] for item in results]
    reached = sum(marks)
    assert 0 < reached < 30
    assert marks == [True] * reached + [False] * (30 - reached)
    assert {item["index"] for item in results[:reached]} == set(range(30 - reached, 30))
    assert [item["index"] for item in results[reached:]] == list(range(29 - reached, -1, -1))
    scores = [item["relevance_score"] for item in results]
    assert scores == sorted(scores, reverse=True)
    assert response.headers["x-reranked"] == f"{reached}/30"
    ranker = lifecycle.current.ranker
    texts = [documents[item["index"]]["text"] for item in results[:reached]]
    assert response.json()["usage"]["total_tokens"] == sum(len(pair.ids) for pair in ranker.pairs("sort", texts))
    assert results[0]["document"]["score"] == results[0]["index"]


def test_a_cascade_that_reached_nothing_proves_no_model_ready(started: Any, monkeypatch: Any) -> None:
    lifecycle = started()
    client = TestClient(apps.create(lifecycle))
    held_back(lifecycle, monkeypatch, 0.3)
    monkeypatch.setattr(lifecycle.current, "ping", lambda: 1 / 0)
    body = {"query": "sort", "documents": [{"text": "a", "score": 1}, {"text": "b", "score": 2}], "cascade": True}
    answer = client.post("/rerank", json=body, headers={"x-request-timeout-ms": "50"})
    assert (answer.headers["x-reranked"], answer.headers["x-cache"]) == ("0/2", "miss, 0/2")
    assert client.get("/health").status_code == 503


def test_texts_use_the_encoder_and_marks_show_only_in_a_cascade(started: Any, tiny: Any) -> None:
    lifecycle = started()
    client = TestClient(apps.create(lifecycle))
    texts = ["Open file and return a stream", "Return a new sorted list", "Shuffle list x in place"]
    plain = client.post("/rerank", json={"query": "sort a list", "texts": texts}).json()
    answer = client.post("/rerank", json={"query": "sort a list", "texts": texts, "cascade": True}).json()
    assert [{**item, "reranked": True} for item in plain] == answer
    model = tiny.models[lifecycle.current.release]
    assert answer[0]["score"] == pytest.approx(max(relevance(model.score("sort a list", text)) for text in texts))


def test_nothing_reached_is_still_an_answer_that_json_can_hold(started: Any, monkeypatch: Any) -> None:
    lifecycle = started()
    client = TestClient(apps.create(lifecycle))
    held_back(lifecycle, monkeypatch, 0.2)
    for raw in (False, True):
        body = {"query": "q", "texts": [f"a {raw}", f"b {raw}"], "cascade": True, "raw_scores": raw}
        response = client.post("/rerank", json=body, headers={"x-request-timeout-ms": "1"})
        assert response.status_code == 200
        assert json.loads(response.text) == [
            {"index": 0, "score": 0.0, "reranked": False},
            {"index": 1, "score": 0.0, "reranked": False},
        ]


@pytest.mark.parametrize("score", ["high", None, True, float("nan"), 10**400])
def test_a_first_stage_of_some_documents_only_is_refused(started: Any, score: Any) -> None:
    documents = [{"text": "a", "score": 1}, {"text": "b", "score": score}]
    body = json.dumps({"query": "\\u0061 q", "documents": documents, "cascade": True}).replace("\\\\u", "\\u")
    response = TestClient(apps.create(started())).post("/v1/rerank", content=body)
    assert response.status_code in (400, 422)
    if response.status_code == 422:
        assert "documents[1].score" in response.json()["message"]
