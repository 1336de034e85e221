"""Long documents at /rerank: read in passages, each scored as a document of its own, by numpy's account too."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipeline.passages import MAX_PASSAGES, Passages
from serving.api import app as apps
from serving.rollout.lifecycle import Lifecycle
from serving.runtime.engine import Engine
from serving.scoring.reranker import relevance
from tests.serving.conftest import DOCUMENTS, PAIR, TinyModels, TinyWorkspace
from tests.serving.patience import patient

QUERY = "sort a list"
ROOM = PAIR.max_tokens - PAIR.special_tokens - 3
"""Tokens of a document beside QUERY."""
WORDS = ["return", "stable", "sorted", "list", "items", "file", "text", "mode", "stream", "open", "dataset", "shuffle"]


def words(count: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


LONG, LONGER = words(150, 1), words(700, 2)
TEXTS = [LONG, "open a file", LONGER, words(ROOM, 3), words(ROOM + 1, 4)]


def slices(text: str, most: int, window: int = ROOM, stride: int = ROOM // 2) -> list[str]:
    """The passages of a text of one token a word, by a loop of its own."""
    tokens = text.split()
    if len(tokens) <= ROOM:
        return [text]
    parts, start = [], 0
    while len(parts) < most:
        parts.append(" ".join(tokens[start : start + window]))
        if start + window >= len(tokens):
            break
        start = min(start + stride, len(tokens) - window)
    return parts


@pytest.fixture(scope="module")
def client(tiny: TinyWorkspace) -> TestClient:
    lifecycle = Lifecycle(patient(workspace=tiny.path, release=tiny.releases.resolve("live"), threads=2))
    lifecycle.start()
    return TestClient(apps.create(lifecycle))


@pytest.fixture(scope="module")
def models(tiny: TinyWorkspace) -> TinyModels:
    return tiny.models[tiny.releases.resolve("live")]


@pytest.fixture
def serve(fresh: TinyWorkspace) -> Callable[..., TestClient]:
    """A service of a release whose ranker reads passages as told."""

    def start(passages: Passages | None, **knobs: Any) -> TestClient:
        release = fresh.publish(3, passages=passages)
        lifecycle = Lifecycle(patient(workspace=fresh.path, release=release, threads=2, **knobs))
        lifecycle.start()
        return TestClient(apps.create(lifecycle))

    return start


def scores(client: TestClient, texts: list[str] = TEXTS, **more: Any) -> list[float]:
    response = client.post("/rerank", json={"query": QUERY, "texts": texts, "raw_scores": True, **more})
    assert response.status_code == 200, response.text
    return [item["score"] for item in sorted(response.json(), key=lambda item: item["index"])]


def refused(client: TestClient, status: int, message: str, **more: Any) -> None:
    response = client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS, **more})
    assert response.status_code == status, response.text
    assert message in response.json()["message"]
    assert response.json()["message"].count("max_chunks_per_doc") <= 1


@pytest.mark.parametrize("most", [2, 3, 7, MAX_PASSAGES])
def test_the_best_passage_gives_the_score(client: TestClient, models: TinyModels, most: int) -> None:
    expected = [max(models.score(QUERY, part) for part in slices(text, most)) for text in TEXTS]
    assert scores(client, max_chunks_per_doc=most) == pytest.approx(expected, abs=1e-5)


def test_without_the_field_or_with_one_passage_documents_are_cut_at_their_end(
    client: TestClient, models: TinyModels
) -> None:
    expected = [models.score(QUERY, text) for text in TEXTS]
    assert scores(client) == scores(client, max_chunks_per_doc=1) == scores(client, max_chunks_per_doc=None)
    assert scores(client) == pytest.approx(expected, abs=1e-5)
    assert scores(client, max_tokens_per_doc=100) == scores(client)


def test_a_document_that_fits_has_the_same_bits_either_way(client: TestClient) -> None:
    plain, parted = scores(client), scores(client, max_chunks_per_doc=9)
    assert (parted[1], parted[3]) == (plain[1], plain[3])
    assert all(second >= first for first, second in zip(plain, parted, strict=True))


def test_a_bound_on_tokens_ends_the_reading(client: TestClient, models: TinyModels) -> None:
    cut = [" ".join(text.split()[:100]) for text in TEXTS]
    expected = [max(models.score(QUERY, part) for part in slices(text, 50)) for text in cut]
    assert scores(client, max_chunks_per_doc=50, max_tokens_per_doc=100) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "passages", [Passages(most=4), Passages(most=9, tokens=30, stride=20), Passages(most=9, best=3)]
)
def test_a_release_reads_passages_by_itself_and_offline_alike(serve: Any, fresh: Any, passages: Passages) -> None:
    client = serve(passages)
    models = TinyModels(3)
    window, stride = passages.tokens or ROOM, passages.stride or ROOM // 2
    expected = []
    for text in TEXTS:
        best = sorted((models.score(QUERY, part) for part in slices(text, passages.most, window, stride)), reverse=True)
        expected.append(sum(best[: passages.best]) / len(best[: passages.best]))
    online = scores(client)
    assert online == pytest.approx(expected, abs=1e-5)
    engine = Engine(models.bundle(fresh.path, "ranker", passages=passages).path, threads=1)
    assert engine.scores(QUERY, TEXTS) == online
    alone = [scores(client, [text])[0] for text in reversed(TEXTS)]
    assert alone[::-1] == online  # The same bits in any company.
    assert scores(client, max_chunks_per_doc=1) == pytest.approx(
        [models.score(QUERY, text) for text in TEXTS], abs=1e-5
    )
    fewer = replace(passages, most=2, best=min(passages.best, 2))
    assert scores(client, max_chunks_per_doc=2) == scores(serve(fewer))


def test_each_passage_is_kept_by_itself(client: TestClient) -> None:
    def cache(text: str, **more: Any) -> str:
        body = {"query": "cached by itself", "texts": [text], **more}
        return client.post("/rerank", json=body).headers["x-cache"]

    document = words(300, 9)
    parts = len(slices(document, 99))
    assert cache(document, max_chunks_per_doc=99) == f"miss, 0/{parts}"
    assert cache(document, max_chunks_per_doc=99) == f"hit, {parts}/{parts}"
    assert cache(document, max_chunks_per_doc=3) == "hit, 3/3"
    # A text that grew at its end: only the passages that reach into the new part are computed.
    grown = f"{document} {words(40, 10)}"
    fresh, total = set(slices(grown, 99)) - set(slices(document, 99)), len(slices(grown, 99))
    assert 0 < len(fresh) < total / 2
    assert cache(grown, max_chunks_per_doc=99) == f"partial, {total - len(fresh)}/{total}"


def test_usage_counts_the_tokens_that_were_read(client: TestClient) -> None:
    def tokens(**more: Any) -> int:
        body = {"query": QUERY, "documents": [LONG, "open a file"], **more}
        return int(client.post("/v1/rerank", json=body).json()["usage"]["total_tokens"])

    beside = PAIR.special_tokens + 3
    assert tokens() == (beside + ROOM) + (beside + 3)
    assert tokens(max_chunks_per_doc=3) == 3 * (beside + ROOM) + (beside + 3)


def test_fused_and_cascaded_answers_read_passages_too(client: TestClient, models: TinyModels) -> None:
    best = [max(models.score(QUERY, part) for part in slices(text, 9)) for text in TEXTS]
    body = {"query": QUERY, "texts": TEXTS, "raw_scores": True, "max_chunks_per_doc": 9}
    fused = client.post("/rerank", json={**body, "first_stage_scores": [1, 2, 3, 4, 5]}).json()
    assert {item["index"]: item["ranker_score"] for item in fused} == pytest.approx(dict(enumerate(best)), abs=1e-5)
    response = client.post("/rerank", json={**body, "cascade": True})
    assert {item["index"]: item["score"] for item in response.json()} == pytest.approx(dict(enumerate(best)), abs=1e-5)
    assert all(item["reranked"] for item in response.json())
    assert response.headers["x-reranked"] == f"{len(TEXTS)}/{len(TEXTS)}"


def test_truncate_false_refuses_what_the_passages_do_not_reach(client: TestClient) -> None:
    body = {"truncate": False}
    assert len(scores(client, max_chunks_per_doc=99, **body)) == len(TEXTS)
    refused(client, 422, "document 0: has more than", **body)
    refused(client, 422, "document 2: has more than", max_chunks_per_doc=5, **body)


@pytest.mark.parametrize("value", [0, -1, MAX_PASSAGES + 1, 10**12, "many", 2.5, [3]])
def test_an_impossible_number_of_passages_is_refused_in_one_message(client: TestClient, value: Any) -> None:
    refused(client, 422, "max_chunks_per_doc", max_chunks_per_doc=value)


def test_more_passages_than_the_service_takes_are_refused_before_any_work(serve: Any) -> None:
    client = serve(None, max_passages=9)
    refused(client, 413, "at most 9 are taken in one request (RELEVANCE_MAX_PASSAGES)", max_chunks_per_doc=99)
    assert len(scores(client, max_chunks_per_doc=2)) == len(TEXTS)


def test_passages_count_for_admission_and_deadlines(client: TestClient) -> None:
    engine = client.app.state.service.lifecycle.current.ranker  # type: ignore[attr-defined]
    pace, engine.pace = engine.pace, type(engine.pace)()
    try:
        engine.pace.ran(1000, 200.0)  # Five tokens a second: 25 passages of 64 take minutes of two runners.
        body = {"query": "never asked before", "texts": [LONGER], "max_chunks_per_doc": 99}
        waiting = engine.scheduler.wait_s
        engine.scheduler.wait_s = lambda *_: 0.001
        try:
            response = client.post("/rerank", json=body, headers={"x-request-timeout-ms": "60000"})
        finally:
            engine.scheduler.wait_s = waiting
        assert response.status_code == 429, response.text
        assert re.search(r"whose own is about 1\d\d\.", response.json()["message"])
        assert client.post("/rerank", json={**body, "max_chunks_per_doc": 2}).status_code == 200
    finally:
        engine.pace = pace


def test_a_search_shows_the_best_passage(serve: Any) -> None:
    client, models = serve(Passages(most=99)), TinyModels(3)
    query = "sleep delay of seconds"
    answer = client.post("/search", json={"query": query, "top_n": 50, "fields": ["text"]}).json()
    (hit,) = (hit for hit in answer["reranked"] if hit["doc_id"] == "d8")
    title, text = DOCUMENTS[8]
    room = PAIR.max_tokens - PAIR.special_tokens - 4
    ids = models.ids(f"{title}\n{text}")
    spans = Passages(most=99).spans(len(ids), room)
    scores = [models.score_ids(models.ids(query), ids[start:end]) for start, end in spans]
    best = scores.index(max(scores))
    passage = hit["passage"]
    assert (passage["number"], passage["of"]) == (best + 1, len(spans))
    assert hit["relevance"] == pytest.approx(relevance(max(scores)), abs=1e-5)
    assert passage["text"] == text[passage["start"] : passage["end"]]
    before = 0 if passage["start"] else len(models.ids(title))
    assert models.ids(passage["text"]) == ids[spans[best][0] + before : spans[best][1]]
    assert hit["snippet"].strip("… ") in " ".join(passage["text"].split())
    assert hit["snippet"].startswith("…") == (passage["start"] > 0)
    short = [hit for hit in answer["reranked"] if len(models.ids(hit["fields"]["text"])) < 20]
    assert short
    assert not any("passage" in hit for hit in short)
    alone = client.post("/search", json={"query": query, "lists": ["lexical"]}).json()
    assert not any("passage" in hit for hit in alone["lexical"])


def test_a_search_of_a_release_without_passages_shows_none(client: TestClient) -> None:
    answer = client.post("/search", json={"query": "clock goes on", "top_n": 50}).json()
    assert any(hit["doc_id"] == "d8" for hit in answer["reranked"])
    assert not any("passage" in hit for name in ("lexical", "semantic", "reranked") for hit in answer[name])
