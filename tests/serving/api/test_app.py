"""The endpoints over a real tiny release, each answer held against numpy or against a client's published contract."""

import asyncio
import base64
import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from serving.api import app as apps
from serving.api import keys
from serving.api.info import SurfaceWorth
from serving.rollout import readiness
from serving.rollout.lifecycle import Lifecycle
from serving.runtime.items import Item
from serving.scoring.reranker import relevance
from tests.serving.conftest import CLS, SEP, SURFACES, TEXT, UNKNOWN
from tests.serving.metrics_text import series
from tests.serving.patience import PATIENCE_S, Clock, patient

TEXTS = ["Shuffle list x in place", "Return a new sorted list", "", "Open file and return a stream", "列表 排序"]


@pytest.fixture(scope="module")
def lifecycle(tiny: Any) -> Lifecycle:
    ready_lifecycle = Lifecycle(patient(workspace=tiny.path, release=tiny.releases.resolve("live"), threads=1))
    ready_lifecycle.start()
    return ready_lifecycle


@pytest.fixture(scope="module")
def client(lifecycle: Lifecycle) -> Iterator[TestClient]:
    with TestClient(apps.create(lifecycle)) as test_client:
        yield test_client


@pytest.fixture
def expected(tiny: Any, lifecycle: Lifecycle) -> Callable[[str, Sequence[str]], list[float]]:
    models = tiny.models[lifecycle.current.release]
    return lambda query, texts: [models.score(query, text) for text in texts]


def client_of(started: Callable[..., Lifecycle], **knobs: Any) -> TestClient:
    return TestClient(apps.create(started(**knobs)))


def refused(response: httpx.Response, status: int, words: str) -> dict[str, Any]:
    """An error that every kind of client can read."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error", "message", "detail", "type"}
    assert words in body["message"]
    assert body["detail"] == body["message"]
    assert "Traceback" not in response.text
    return body


# Rerank.


def test_tei_gets_a_bare_list_by_falling_score(client: TestClient, expected: Any) -> None:
    response = client.post("/rerank", json={"query": "sort a list", "texts": TEXTS})
    scores = [relevance(score) for score in expected("sort a list", TEXTS)]
    answer = response.json()
    assert [item["index"] for item in answer] == sorted(range(len(TEXTS)), key=lambda index: -scores[index])
    assert all(set(item) == {"index", "score"} for item in answer)
    assert {item["index"]: item["score"] for item in answer} == pytest.approx(dict(enumerate(scores)), abs=1e-5)


def test_tei_options(client: TestClient, expected: Any) -> None:
    body = {
        "query": "q",
        "texts": TEXTS,
        "raw_scores": True,
        "return_text": True,
        "truncate": None,
        "top_n": 1,
        "x": {},
    }
    answer = client.post("/rerank", json=body).json()
    assert len(answer) == len(TEXTS)  # top_n belongs to other clients, which send it here too.
    for item in answer:
        assert item["text"] == TEXTS[item["index"]]
        assert item["score"] == pytest.approx(expected("q", TEXTS)[item["index"]], abs=1e-5)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_cohere_and_jina(client: TestClient, expected: Any, path: str) -> None:
    """langchain-cohere sends nulls; Open WebUI sends top_n = all; Dify asks at /rerank."""
    body = {"model": "rerank-v3.5", "query": "sort", "documents": TEXTS, "top_n": None, "max_tokens_per_doc": None}
    answer = client.post(path, json=body).json()
    assert isinstance(answer["id"], str)
    assert answer["usage"]["total_tokens"] > 0
    scores = [relevance(score) for score in expected("sort", TEXTS)]
    assert [item["relevance_score"] for item in answer["results"]] == pytest.approx(
        sorted(scores, reverse=True), abs=1e-5
    )
    assert all(set(item) == {"index", "relevance_score"} for item in answer["results"])


@pytest.mark.parametrize(("top_n", "count"), [(1, 1), (3, 3), (99, 5), (0, 5), (None, 5)])
def test_top_n(client: TestClient, top_n: int | None, count: int) -> None:
    answer = client.post("/v1/rerank", json={"query": "q", "documents": TEXTS, "top_n": top_n}).json()
    assert len(answer["results"]) == count


def test_options_of_other_clients_beside_documents(client: TestClient, expected: Any) -> None:
    scores = sorted(expected("sort", TEXTS), reverse=True)
    body = {"query": "sort", "documents": TEXTS}

    def results(**more: Any) -> Any:
        response = client.post("/v1/rerank", json={**body, **more})
        assert response.status_code == 200, response.text
        return response.json()["results"]

    assert [item["relevance_score"] for item in results(raw_scores=True)] == pytest.approx(scores, abs=1e-5)
    assert len(results(top_k=2)) == len(results(top_k=2, top_n=2)) == 2
    assert all(item["document"] == {"text": TEXTS[item["index"]]} for item in results(return_text=True))
    assert results(max_tokens_per_doc=0) == results()
    refused(client.post("/v1/rerank", json={**body, "top_n": 1, "top_k": 2}), 422, "top_n is 1 and top_k is 2")
    refused(client.post("/v1/rerank", json={**body, "max_tokens_per_doc": -1}), 422, "max_tokens_per_doc is -1")


def test_voyage_reads_its_own_answer(client: TestClient) -> None:
    body = {"query": "sort", "documents": TEXTS, "return_documents": True}
    answer = client.post("/v1/rerank", json={**body, "top_k": 2}).json()
    assert answer["object"] == "list"
    assert [item["document"] for item in answer["data"]] == [TEXTS[item["index"]] for item in answer["results"]]
    assert [{**item, "document": {"text": item["document"]}} for item in answer["data"]] == answer["results"]
    assert "data" not in client.post("/v1/rerank", json={**body, "top_n": 2}).json()


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("name", ["documents", "texts"])
def test_a_cascade_that_reached_nothing_says_that_nothing_is_relevant(
    started: Any, monkeypatch: Any, name: str, raw: bool
) -> None:
    lifecycle, go = started(), threading.Event()
    client, real = TestClient(apps.create(lifecycle)), lifecycle.current.ranker.run

    def run(items: Sequence[Item]) -> Any:
        go.wait(60)
        return real(items)

    monkeypatch.setattr(lifecycle.current.ranker, "run", run)
    body = {"query": "never seen", name: TEXTS, "cascade": True, "raw_scores": raw}
    answer = client.post("/rerank", json=body, headers={"x-request-timeout-ms": "200"}).json()
    go.set()
    results = answer["results"] if name == "documents" else answer
    scores = {item["relevance_score" if name == "documents" else "score"] for item in results}
    assert not any(item["reranked"] for item in results)
    assert len(scores) == 1
    assert scores.pop() <= 0.0


def test_documents_come_back_as_objects_when_asked_for(client: TestClient) -> None:
    documents = ["plain", {"text": "with id", "id": 7}]
    answer = client.post("/v1/rerank", json={"query": "q", "documents": documents, "return_documents": True}).json()
    assert {item["index"]: item["document"] for item in answer["results"]} == {
        0: {"text": "plain"},
        1: {"text": "with id", "id": 7},
    }


@pytest.mark.parametrize(
    ("document", "fields", "read"),
    [
        ({"text": "list"}, None, "list"),
        ({"text": "list", "title": "sorted", "n": 1}, None, "sorted\nlist"),
        ({"text": "list", "title": "sorted"}, ["title"], "sorted"),
        ({"a": "new", "b": "file", "c": 3}, ["b", "c", "z"], "file\n3"),
        ({"a": "new", "b": "file", "c": 3}, None, "new\nfile"),
        ({"text": None, "title": "sorted"}, None, "sorted"),
    ],
)
def test_objects_are_read_by_their_fields(
    client: TestClient, expected: Any, document: Any, fields: Any, read: str
) -> None:
    answer = client.post("/v1/rerank", json={"query": "q", "documents": [document], "rank_fields": fields}).json()
    assert answer["results"][0]["relevance_score"] == pytest.approx(relevance(expected("q", [read])[0]), abs=1e-5)


def test_no_documents_give_no_results(client: TestClient) -> None:
    assert client.post("/rerank", json={"query": "q", "texts": []}).json() == []
    assert client.post("/v1/rerank", json={"query": "q", "documents": []}).json()["results"] == []


def test_equal_documents_keep_their_order_and_are_computed_once(client: TestClient) -> None:
    texts = [f"the same {time.time()}"] * 20
    response = client.post("/rerank", json={"query": "q", "texts": texts})
    assert [item["index"] for item in response.json()] == list(range(20))
    assert response.headers["x-cache"] == "partial, 19/20"
    assert client.post("/rerank", json={"query": "q", "texts": texts}).headers["x-cache"] == "hit, 20/20"


# Texts that a stranger may send.


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ('"\\ud800 list"', "\ufffd list"),
        ('"\\u0000 list"', "  list"),
        ('"\\ud83d\\ude42 list"', "🙂 list"),
        ('"' + "sorted list " * 90_000 + '"', "sorted list " * 40),
        ('"\\udfff\\u0000\\ud800"', "\ufffd \ufffd"),
    ],
    ids=["lone surrogate", "nul", "pair", "a million characters", "all at once"],
)
def test_hostile_texts_are_read_as_their_clean_form(client: TestClient, expected: Any, text: str, read: str) -> None:
    body = f'{{"query": "q", "texts": [{text}, "other"], "raw_scores": true, "return_text": true}}'
    answer = client.post("/rerank", content=body).json()
    scores = {item["index"]: item["score"] for item in answer}
    assert scores[0] == pytest.approx(expected("q", [read])[0], abs=1e-4)


def test_a_surrogate_in_a_key_or_an_ignored_field_harms_nothing(client: TestClient) -> None:
    assert client.post("/rerank", content=b'{"query": "q", "texts": ["a"], "\\ud800": "\\udc00"}').status_code == 200


def test_a_document_as_deep_as_is_taken_can_be_given_back(client: TestClient) -> None:
    deep = (
        b'{"query": "q", "return_documents": true, "documents": [{"text": "a", "x": ' + b"[" * 197 + b"]" * 197 + b"}]}"
    )
    given = json.loads(deep)["documents"][0]
    assert client.post("/rerank", content=deep).json()["results"][0]["document"] == given
    refused(client.post("/rerank", content=deep.replace(b"[]", b"[[]]")), 400, "nested too deep")


@pytest.mark.parametrize(
    "body",
    [b"", b"  ", b"{", b"nope", b'{"query": NaN}', b"\xff\xfe", b'"\xc3"', b"[" * 100_000, b'{"a":' * 5000 + b"1",
     b'["\\ud800"' + b"[" * 100_000, b'{"query": "\\ud800", "x": NaN}', b'{"x": ' + b"[" * 200 + b"]" * 200 + b"}"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/rerank", "/search", "/v1/embeddings", "/embed", "/v2/embed"])
def test_what_is_not_json_is_a_400(client: TestClient, path: str, body: bytes) -> None:
    response = client.post(path, content=body)
    assert response.status_code == 400, response.text
    assert response.json()["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/rerank", [], "the body"),
        ("/rerank", "text", "the body"),
        ("/rerank", {"texts": ["a"]}, "query"),
        ("/rerank", {"query": "q"}, "texts or documents is missing"),
        ("/rerank", {"query": "q", "texts": None, "documents": None}, "texts or documents is missing"),
        ("/v1/rerank", {"query": "q", "texts": ["a"], "documents": ["b"]}, "send one of them"),
        ("/rerank", {"query": "", "texts": ["a"]}, "query is empty"),
        ("/rerank", {"query": 1, "texts": ["a"]}, "query"),
        ("/rerank", {"query": "q", "texts": "a"}, "texts"),
        ("/rerank", {"query": "q", "texts": ["a", 1]}, "texts[1]"),
        ("/rerank", {"query": "q", "texts": ["a", None]}, "texts[1]"),
        ("/v1/rerank", {"query": "q", "documents": [["a"]]}, "documents[0]: a document is a text"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "top_n": -1}, "top_n"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "top_n": "many"}, "top_n"),
        ("/search", {}, "query"),
        ("/search", {"query": " "}, "query is empty"),
        ("/search", {"query": "q", "top_n": 0}, "top_n"),
        ("/search", {"query": "q", "top_n": 101}, "at most 100"),
        ("/v2/embed", {}, "texts: Field required"),
        ("/v2/embed", {"texts": []}, "texts: must be a list of texts, and not empty"),
        ("/v2/embed", {"texts": "a"}, "texts: must be a list of texts, and not empty"),
        ("/v2/embed", {"texts": ["a", 1]}, "texts[1]: Input should be a valid string"),
        ("/v2/embed", {"texts": ["a", " "]}, "texts[1] is empty"),
        ("/v2/embed", {"texts": ["a"], "embedding_types": ["float", "float"]}, "a type stands there twice"),
        ("/v2/embed", {"texts": ["a"], "embedding_types": [["float"]]}, "embedding_types: holds a list"),
        ("/v2/embed", {"texts": ["word " * 500], "truncate": "NONE"}, "texts[0]: has more than"),
        ("/v2/embed", {"texts": ["a"], "truncate": "START"}, "truncate: Input should be 'END' or 'NONE'"),
        ("/v2/embed", {"texts": ["a"], "images": ["data:"]}, "the encoder reads texts only"),
        ("/embed", {"inputs": []}, "inputs"),
        ("/embed", {"inputs": ["a", ""]}, "inputs[1] is empty"),
        ("/embed", {"inputs": "a", "normalize": False}, "normalize"),
        ("/embed", {"inputs": "a", "dimensions": 5}, "dimensions is 5; this encoder gives 4 or 8"),
        ("/embed", {"inputs": "a", "dimensions": 0}, "dimensions is 0; this encoder gives 4 or 8"),
        ("/v1/embeddings", {"input": "a", "output_dimension": 0}, "dimensions is 0; this encoder gives 4 or 8"),
        ("/embed", {"inputs": ["a", [1, -1]]}, "item 1 must be a text, or a list of token ids"),
        ("/embed", {"inputs": ["a", True]}, "item 1 must be a text"),
        ("/embed", {"inputs": "a", "truncation_direction": "left"}, "truncation_direction"),
        ("/search", {"query": "q", "filters": {"colour": "red"}}, "a field 'colour'; there are: kind, tags, year"),
        ("/search", {"query": "q", "filters": {"year": {"from": 1}}}, "filters.year: a filter is a text, a number"),
        ("/search", {"query": "q", "filters": {"year": None}}, "filters.year: a filter is a text, a number"),
        ("/search", {"query": "q", "filters": {"year": 2**64}}, "filters.year: a number of more than 64 bits"),
        ("/search", {"query": "q", "filters": {"year": [1, -(2**63) - 1]}}, "filters.year: a number of more than 64"),
        ("/search", {"query": "q", "filters": {"year": 2.0**54}}, "filters.year: a number of more than 64 bits, or"),
        ("/v2/rerank", {"query": "q", "documents": ["a"], "max_tokens_per_doc": 3}, "max_tokens_per_doc is 3"),
        ("/search", {"query": "q", "filters": {"year": list(range(1001))}}, "more than 1000 values"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_a_422_that_names_the_field(
    client: TestClient, path: str, body: Any, named: str
) -> None:
    refused(client.post(path, json=body), 422, named)


def test_ten_thousand_documents_are_refused_with_the_number(client: TestClient) -> None:
    body = refused(client.post("/rerank", json={"query": "q", "texts": ["a"] * 10_000}), 413, "10000 documents")
    assert "send at most 1000" in body["message"]
    body = refused(client.post("/embed", json={"inputs": ["a"] * 2049}), 413, "2049 texts")
    assert "send at most 2048" in body["message"]


@pytest.mark.parametrize("name", ["texts", "documents"])
def test_a_thousand_wrong_documents_have_one_short_message(client: TestClient, name: str) -> None:
    body = refused(client.post("/rerank", json={"query": "q", name: [1] * 1000}), 422, f"{name}[0]")
    assert len(body["message"]) < 500
    refused(client.post("/rerank", json={"query": "q", name: [1] * 10_000}), 413, "10000 documents")


@pytest.mark.parametrize(
    ("document", "fields", "named"),
    [
        ({}, None, "documents[1] has no text"),
        ({"id": 7}, None, "documents[1] has no text; it has id"),
        ({"text": None}, None, "documents[1] has no text"),
        ({"text": ["a", "b"]}, None, "documents[1].text is a list"),
        ({"text": "a", "title": 5}, None, "documents[1].title is 5"),
        ({"text": "a"}, ["nope"], "documents[1] has none of the fields in rank_fields; it has text"),
        ({"text": None}, ["text"], "documents[1] has none of the fields in rank_fields"),
        ({"a": {"b": 1}}, ["a"], "documents[1].a is an object"),
        ({"a": "b"}, ["a", "a"], "rank_fields: a field is named twice"),
        ({"a": "b"}, [str(number) for number in range(101)], "rank_fields"),
    ],
)
def test_a_document_without_text_is_a_422_that_names_it(
    client: TestClient, document: Any, fields: Any, named: str
) -> None:
    body = {"query": "q", "documents": ["fine", document], "rank_fields": fields}
    refused(client.post("/v1/rerank", json=body), 422, named)


def test_numbers_and_truth_values_are_read_as_json_writes_them(client: TestClient, expected: Any) -> None:
    body = {"query": "q", "documents": [{"a": True, "b": 4.5}], "rank_fields": ["a", "b"], "raw_scores": True}
    answer = client.post("/v1/rerank", json=body).json()
    assert answer["results"][0]["relevance_score"] == pytest.approx(expected("q", ["true\n4.5"])[0], abs=1e-5)


# Sizes, keys, paths.


def test_a_body_over_the_limit_is_refused_before_it_is_parsed(started: Any) -> None:
    client = client_of(started, max_body_bytes=1000)
    refused(client.post("/rerank", content=b"{" * 1001), 413, "1,001 bytes; the limit is 1,000")
    refused(client.post("/rerank", content=iter([b"{" * 600] * 3)), 413, "the limit is 1,000")
    assert client.post("/rerank", json={"query": "q", "texts": ["a"]}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"authorization": "Bearer two"}, {"authorization": "two"}, {"x-api-key": "one"}, {"api-key": "one"}],
)
def test_any_of_the_keys_opens_in_any_of_the_ways(started: Any, headers: dict[str, str]) -> None:
    client = client_of(started, api_keys=(keys.digest("one").hex(), keys.digest("two").hex()))
    assert client.post("/rerank", json={"query": "q", "texts": ["a"]}, headers=headers).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer three"}, {"authorization": "Bearer "}])
def test_without_a_key_only_probes_and_pages_answer(started: Any, headers: dict[str, str]) -> None:
    client = client_of(started, api_keys=(keys.digest("one").hex(),))
    for path in ("/rerank", "/v1/rerank", "/search", "/embed"):
        response = client.post(path, json={"query": "q", "texts": ["a"]}, headers=headers)
        refused(response, 401, "API key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert client.get("/info", headers=headers).status_code == 401
    assert client.get("/v1/models", headers=headers).status_code == 401
    for path in ("/", "/docs", "/openapi.json", "/livez", "/readyz", "/health", "/metrics"):
        assert client.get(path, headers=headers).status_code == 200


def test_unknown_paths_and_methods(client: TestClient) -> None:
    refused(client.get("/nope"), 404, "/nope")
    response = client.get("/rerank")
    refused(response, 405, "use POST")
    assert response.headers["allow"] == "POST"
    for path, allowed in (("/search", "GET, POST"), ("/livez", "GET, HEAD"), ("/v1/models/ranker", "GET")):
        response = client.put(path)
        refused(response, 405, f"use {allowed}")
        assert response.headers["allow"] == allowed


# Search.


def test_search_gives_three_lists(client: TestClient, lifecycle: Lifecycle) -> None:
    answer = client.post("/search", json={"query": "sort a list", "top_n": 5, "unknown": None}).json()
    expected = lifecycle.current.search("sort a list", top_n=5)
    assert answer["release"] == expected.release
    for name in ("lexical", "semantic", "reranked"):
        assert [item["doc_id"] for item in answer[name]] == [item.doc_id for item in getattr(expected, name)]
    assert answer["milliseconds"]["total"] > 0
    by_link = client.get("/search", params={"q": "sort a list", "top_n": 5}).json()
    assert by_link["reranked"] == answer["reranked"]
    assert by_link["cache_misses"] == 0


def test_a_search_link_is_checked(client: TestClient) -> None:
    refused(client.get("/search"), 422, "q: ")
    refused(client.get("/search", params={"q": "a", "top_n": "x"}), 422, "top_n")
    refused(client.get("/search", params={"q": ""}), 422, "query is empty")


def test_filters_in_the_body_and_in_a_link_are_the_same(client: TestClient) -> None:
    body = {"query": "a list", "top_n": 50, "filters": {"year": [2001, "2003"], "kind": "class"}}
    answer = client.post("/search", json=body).json()
    ids = {item["doc_id"] for name in ("lexical", "semantic", "reranked") for item in answer[name]}
    assert ids == {f"d{index}" for index in range(49) if index % 7 in (1, 3) and index % 2 == 0}
    link = client.get(
        "/search", params={"q": "a list", "top_n": 50, "filter": ["year:2001", "year:2003", "kind:class"]}
    )
    assert link.json()["reranked"] == answer["reranked"]
    refused(client.get("/search", params={"q": "a", "filter": "year"}), 422, "field:value")


def test_a_query_that_nobody_types_is_refused_and_not_cut(client: TestClient) -> None:
    assert client.post("/search", json={"query": "list " * 20_000}).status_code == 200
    refused(client.post("/search", json={"query": "list " * 20_001}), 413, "at most 100000")


# Embeddings.


def test_openai_embeddings(client: TestClient, tiny: Any, lifecycle: Lifecycle) -> None:
    models = tiny.models[lifecycle.current.release]
    body = {"input": ["sort a list", "open"], "model": "text-embedding-3-small", "user": "x", "dimensions": 8}
    answer = client.post("/v1/embeddings", json=body).json()
    assert answer["object"] == "list"
    assert [item["index"] for item in answer["data"]] == [0, 1]
    for item, text in zip(answer["data"], body["input"], strict=True):
        assert item["embedding"] == pytest.approx(models.vector(text).tolist(), abs=1e-5)
    # [CLS] and [SEP] around 3 and 1 words.
    assert answer["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    coded = client.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()
    for item, plain in zip(coded["data"], answer["data"], strict=True):
        assert np.frombuffer(base64.b64decode(item["embedding"]), "<f4").tolist() == pytest.approx(plain["embedding"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": [1, 2]}, "token ids"),
        ({"input": [[1, 2], [3]]}, "token ids"),
        ({"input": []}, "not empty"),
        ({"input": ""}, "input[0] is empty"),
        ({"input": "a", "dimensions": 256}, "this encoder gives 4 or 8"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({}, "input"),
    ],
)
def test_openai_errors_are_nested_as_its_sdk_reads_them(client: TestClient, body: Any, words: str) -> None:
    error = refused(client.post("/v1/embeddings", json=body), 422, words)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]


def test_tei_embed(client: TestClient, tiny: Any, lifecycle: Lifecycle) -> None:
    models = tiny.models[lifecycle.current.release]
    (vector,) = client.post("/embed", json={"inputs": "sort", "prompt_name": "query", "truncate": True}).json()
    assert vector == pytest.approx(models.vector("sort").tolist(), abs=1e-5)
    assert len(client.post("/embed", json={"inputs": ["a", "b"]}).json()) == 2


def test_the_first_dimensions_are_those_of_the_whole_made_unit_again(client: TestClient, tiny: Any) -> None:
    (vector,) = client.post("/embed", json={"inputs": "sort a list"}).json()
    (first,) = client.post("/embed", json={"inputs": "sort a list", "dimensions": 4}).json()
    assert first == pytest.approx((np.array(vector[:4]) / np.linalg.norm(vector[:4])).tolist(), abs=1e-6)
    answer = client.post("/v1/embeddings", json={"input": "sort a list", "dimensions": 4}).json()
    assert answer["data"][0]["embedding"] == pytest.approx(first)
    assert client.get("/info").json()["widths"] == [4, 8]


def test_token_ids_are_their_text(client: TestClient, tiny: Any, lifecycle: Lifecycle) -> None:
    models = tiny.models[lifecycle.current.release]
    digest = lifecycle.current.encoder.digest
    ids = models.ids("return a new sorted list")
    (expected,) = client.post("/embed", json={"inputs": "return a new sorted list"}).json()
    special = TEXT.assemble(ids)
    for inputs in (ids, [ids], special):
        assert client.post("/embed", json={"inputs": inputs}).json() == [expected]
    assert client.post("/embed", json={"inputs": ["return a new sorted list", ids]}).json() == [expected] * 2
    answer = client.post("/v1/embeddings", json={"input": [ids, ids], "model": digest}).json()
    assert [item["embedding"] for item in answer["data"]] == [expected] * 2


@pytest.mark.parametrize("ids", [[399_999], [UNKNOWN], [5, UNKNOWN, 6], [2**40]])
def test_token_ids_that_no_text_has_are_refused(client: TestClient, ids: list[int]) -> None:
    refused(client.post("/embed", json={"inputs": [ids]}), 422, "inputs[0]: these token ids are not")


def test_the_token_ids_of_no_text_are_empty(client: TestClient) -> None:
    refused(client.post("/embed", json={"inputs": [[CLS, SEP]]}), 422, "inputs[0] is empty")


def test_texts_are_cut_or_refused_as_the_client_wants(client: TestClient) -> None:
    """62 of a text's tokens are read, 16 of a query's, and of a document what they leave of 64 with three special."""
    words = [f"list {'sorted ' * 200}"[: 5 + 7 * count] for count in (61, 62)]

    def embed(text: str, **more: Any) -> httpx.Response:
        return client.post("/embed", json={"inputs": [text], **more})

    assert embed(words[0], truncate=False).json() == embed(words[0]).json()
    refused(embed(words[1], truncate=False), 422, "inputs[0]: has more than the 62 tokens that the encoder reads")
    assert embed(words[1], truncate=True).json() == embed(words[1]).json() == embed(words[0]).json()

    def rerank(query: str, text: str, **more: Any) -> httpx.Response:
        return client.post("/rerank", json={"query": query, "texts": ["a", text], "truncate": False, **more})

    assert rerank("new list", "sorted " * 59).status_code == 200
    refused(rerank("new list", "sorted " * 60), 422, "document 1: has more than the 59 tokens")
    refused(rerank("list " * 17, "a"), 422, "query: has more than the 16 tokens")
    refused(rerank("new list", "sorted " * 60, cascade=True), 422, "document 1")
    refused(rerank("q", "list " * 100_000), 422, "document 1")
    assert rerank("q", " " * 100_000).status_code == 200  # White space has no tokens, so nothing of it is cut.


# What is served, and how it fares.


def test_models_and_info(client: TestClient, lifecycle: Lifecycle) -> None:
    release = lifecycle.current.release
    listed = client.get("/v1/models").json()
    assert [item["id"] for item in listed["data"]] == ["ranker", "encoder"]
    assert all(item["release"] == release and item["object"] == "model" for item in listed["data"])
    assert client.get("/v1/models/encoder").json() == listed["data"][1]
    assert client.get(f"/v1/models/{listed['data'][0]['digest']}").json() == listed["data"][0]
    error = refused(client.get("/v1/models/gpt-4"), 404, "gpt-4")["error"]
    assert error["type"] == "not_found_error"
    info = client.get("/info").json()
    assert info["model_type"]["reranker"]
    assert (info["release"], info["documents"], info["dimensions"]) == (release, 49, 8)
    assert info["examples"] == ["sort a list", "读 文件"]
    assert listed["surfaces"] == info["surfaces"] == SURFACES
    assert list(SurfaceWorth.model_validate(SURFACES["/rerank"]).model_dump()) == list(SURFACES["/rerank"])


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/info", "/", "/docs", "/metrics", "/nope"])
def test_every_answer_names_its_release(client: TestClient, lifecycle: Lifecycle, path: str) -> None:
    response = client.get(path)
    assert response.headers["x-release"] == lifecycle.current.release
    assert len(response.headers["x-request-id"]) == 32
    assert client.get(path, headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"


def test_probes(client: TestClient, lifecycle: Lifecycle) -> None:
    assert client.get("/livez").json() == {"live": True}
    assert client.get("/readyz").json() == {
        "ready": True,
        "release": lifecycle.current.release,
        "refused": None,
        "withdrawn": None,
    }
    for path in ("/health", "/ping"):
        assert client.get(path).content == b""
        assert client.head(path).status_code == 200


def test_without_a_release_only_life_is_shown(tiny: Any) -> None:
    client = TestClient(apps.create(Lifecycle(patient(workspace=tiny.path / "empty"))))
    assert client.get("/livez").status_code == 200
    assert client.get("/").status_code == 200
    body = client.get("/readyz")
    assert body.status_code == 503
    assert body.json()["ready"] is False
    refused(client.get("/health"), 503, "no release")
    refused(client.post("/rerank", json={"query": "q", "texts": ["a"]}), 503, "no release")
    refused(client.post("/search", json={"query": "q"}), 503, "no release")
    assert "x-release" not in client.get("/livez").headers


def test_ready_means_a_real_inference(started: Any, monkeypatch: Any, caplog: Any) -> None:
    lifecycle = started()
    client = TestClient(apps.create(lifecycle))
    calls: list[float] = []

    def broken() -> None:
        calls.append(time.monotonic())
        raise RuntimeError("the session is gone")

    assert client.get("/readyz").status_code == 200
    monkeypatch.setattr(lifecycle.current, "ping", broken)
    # Fresh enough: not asked again.
    assert client.get("/readyz").status_code == 200
    assert calls == []
    monkeypatch.setattr(readiness, "FRESH_S", 0.0)
    refused(client.get("/health"), 503, "its models fail")
    assert client.get("/readyz").json()["ready"] is False
    assert len(calls) == 2


def test_the_scores_of_one_model_say_nothing_about_the_other(started: Any, monkeypatch: Any) -> None:
    lifecycle = started()
    client = TestClient(apps.create(lifecycle))
    assert client.get("/readyz").status_code == 200
    real, ahead = time.monotonic, [1000.0]
    monkeypatch.setattr(readiness, "FRESH_S", 500)
    monkeypatch.setattr(readiness.time, "monotonic", lambda: real() + ahead[0])

    def broken(*_: Any) -> Any:
        raise RuntimeError("the session is gone")

    with monkeypatch.context() as patched:
        patched.setattr(lifecycle.current.encoder, "run", broken)
        assert client.post("/rerank", json={"query": "q", "texts": ["never seen"]}).status_code == 200
        refused(client.get("/health"), 503, "its models fail")
    ahead[0] = 2000.0
    monkeypatch.setattr(lifecycle.current, "ping", broken)
    refused(client.get("/health"), 503, "its models fail")
    for path, body in (("/rerank", {"query": "q", "texts": ["also new"]}), ("/embed", {"inputs": ["also new"]})):
        assert client.post(path, json=body).status_code == 200
    assert client.get("/readyz").status_code == 200


def test_a_model_that_hangs_is_not_ready_and_is_not_asked_twice(started: Any, monkeypatch: Any) -> None:
    lifecycle, go, calls = started(), threading.Event(), []

    def hang() -> None:
        calls.append(1)
        go.wait(60)

    monkeypatch.setattr(lifecycle.current, "ping", hang)
    monkeypatch.setattr(readiness, "PATIENCE_S", 0.05)
    client = TestClient(apps.create(lifecycle))
    for _ in range(3):
        refused(client.get("/health"), 503, "no answer in 0.05 s")
    assert calls == [1]
    go.set()


def test_a_refused_release_shows_in_readyz(fresh: Any) -> None:
    fresh.releases.promote(fresh.publish(1), reason="test")
    lifecycle = Lifecycle(patient(workspace=fresh.path, threads=1, poll_s=60))
    lifecycle.start()
    with TestClient(apps.create(lifecycle)) as client:
        bad = fresh.publish(2, lie=3.0)
        fresh.releases.promote(bad, reason="test")
        lifecycle.poll()
        answer = client.get("/readyz").json()
        assert answer["ready"] is True
        assert answer["refused"]["release"] == bad
        assert client.get("/livez").headers["x-release"] != bad
        assert "relevance_release_refusals_total 1.0" in client.get("/metrics").text


def test_metrics_count_as_text_embeddings_inference_does(started: Any) -> None:
    client = client_of(started)
    for texts in (["a"], ["a", "b"], ["a", "b"]):
        client.post("/rerank", json={"query": "q", "texts": texts})
    client.post("/rerank", json={"query": "q"})
    client.post("/rerank", json={"query": "q", "texts": ["a"]}, headers={"x-request-timeout-ms": "soon"})
    client.get("/rerank")
    client.get("/nope")
    counters = series(client.get("/metrics").text)
    assert counters['te_request_count{method="single"}'] == 1
    assert counters['te_request_success{method="batch"}'] == 2
    assert counters['te_request_failure{err="validation"}'] == 3
    assert counters['relevance_requests_total{path="/rerank",status="422"}'] == 2
    assert counters["te_request_duration_count"] == 3
    assert counters['relevance_cache_misses_total{cache="scores"}'] == 2
    assert counters['relevance_cache_hits_total{cache="scores"}'] == 3
    assert counters["relevance_texts_total"] == 5
    assert counters['relevance_requests_total{path="/rerank",status="200"}'] == 3
    assert counters['relevance_requests_total{path="other",status="404"}'] == 1
    assert counters["relevance_requests_in_flight"] == 1  # The request for the metrics itself.
    assert any(name.startswith("relevance_release_info{") for name in counters)


def test_the_log_tells_of_requests_and_never_their_texts(client: TestClient, caplog: Any) -> None:
    with caplog.at_level(logging.DEBUG):
        client.post("/v1/rerank", json={"query": "secretquery", "documents": ["secretdocument"]})
        client.get("/search", params={"q": "secretlink"})
        client.post("/rerank", json={"query": "secretquery", "texts": "secretwrong"})
    logged = [record for record in caplog.records if record.name == "serving.requests"]
    assert [record.facts["status"] for record in logged] == [200, 200, 422]
    assert logged[0].facts["items"] == 1
    everything = json.dumps([str(vars(record)) for record in caplog.records if not record.name.startswith("http")])
    assert "secret" not in everything


# Faults.


def test_a_failing_document_fails_its_request_only(started: Any, monkeypatch: Any) -> None:
    lifecycle = started()
    client = TestClient(apps.create(lifecycle))
    ranker, real = lifecycle.current.ranker, lifecycle.current.ranker.run
    (poison,) = ranker.pairs("q", ["poison " * 9])

    def run(items: Sequence[Item]) -> Any:
        if len(items[0].ids) == len(poison.ids):
            raise RuntimeError("secret path /x/y")
        return real(items)

    monkeypatch.setattr(ranker, "run", run)
    body = refused(client.post("/rerank", json={"query": "q", "texts": ["a", "poison " * 9, "b"]}), 500, "document 1")
    assert "secret" not in body["message"]
    good = client.post("/rerank", json={"query": "q", "texts": ["a", "b"]})
    assert good.status_code == 200
    assert good.headers["x-cache"] == "hit, 2/2"


def test_what_nobody_foresaw_is_a_500_without_its_text(started: Any, monkeypatch: Any, caplog: Any) -> None:
    lifecycle = started()
    client = TestClient(apps.create(lifecycle))

    def fail(*args: Any, **knobs: Any) -> Any:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(lifecycle.current, "search", fail)
    response = client.post("/search", json={"query": "q"})
    body = refused(response, 500, response.headers["x-request-id"])
    assert "secret" not in body["message"]
    assert "ZeroDivisionError" in caplog.text


def slow(lifecycle: Lifecycle, monkeypatch: Any, seconds: float) -> list[int]:
    """Makes each run of the ranker take so long; returns the growing list of runs."""
    real, runs = lifecycle.current.ranker.run, []

    def run(items: Sequence[Item]) -> Any:
        runs.append(len(items))
        time.sleep(seconds)
        return real(items)

    monkeypatch.setattr(lifecycle.current.ranker, "run", run)
    return runs


class HeldRuns:
    """Holds each run of the ranker back until the test lets it go on."""

    def __init__(self, lifecycle: Lifecycle, monkeypatch: Any) -> None:
        self.began, self.let_go = threading.Event(), threading.Event()
        self.runs: list[int] = []
        real = lifecycle.current.ranker.run

        def run(items: Sequence[Item]) -> Any:
            self.runs.append(len(items))
            self.began.set()
            assert self.let_go.wait(60)
            return real(items)

        monkeypatch.setattr(lifecycle.current.ranker, "run", run)


def test_a_passed_deadline_is_a_504_and_asking_again_goes_on(started: Any, monkeypatch: Any, clock: Clock) -> None:
    lifecycle = started()
    client, runs, real = TestClient(apps.create(lifecycle)), itertools.count(1), lifecycle.current.ranker.run

    def run(items: Sequence[Item]) -> Any:
        if next(runs) % 6 == 0:
            clock.ahead_s += 10 * PATIENCE_S  # Every deadline passes.
        return real(items)

    monkeypatch.setattr(lifecycle.current.ranker, "run", run)
    body = {"query": "q", "texts": [f"text {index}" for index in range(20)]}
    refused(client.post("/rerank", json=body), 504, "asking again goes on from there")
    attempts = 1
    while (response := client.post("/rerank", json=body)).status_code == 504:
        attempts += 1
        assert attempts < 20
    assert response.status_code == 200
    # What was done before each deadline was kept; only what it interrupted was done again.
    assert next(runs) - 1 <= 20 + attempts


def test_a_client_may_ask_for_less_time(started: Any, monkeypatch: Any) -> None:
    lifecycle = started()
    client, _ = TestClient(apps.create(lifecycle)), slow(lifecycle, monkeypatch, 0.2)
    body = {"query": "q", "texts": ["a text"]}
    refused(client.post("/rerank", json=body, headers={"x-request-timeout-ms": "50"}), 504, "0.05 s")
    refused(client.post("/rerank", json=body, headers={"x-request-timeout-ms": "soon"}), 422, "x-request-timeout-ms")
    refused(client.post("/rerank", json=body, headers={"x-request-timeout-ms": "-1"}), 422, "above 0")
    refused(client.post("/rerank", json=body, headers={"x-request-timeout-ms": "9" * 400}), 422, "whole milliseconds")


def test_waiting_for_a_worker_counts_to_the_deadline(started: Any, monkeypatch: Any) -> None:
    lifecycle = started(concurrency=1, deadline_s=0.3)
    app, held = apps.create(lifecycle), HeldRuns(lifecycle, monkeypatch)

    async def both() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            bodies = [{"query": "q", "texts": [f"text {index}"]} for index in range(2)]
            return list(await asyncio.gather(*(client.post("/rerank", json=body) for body in bodies)))

    assert [response.status_code for response in asyncio.run(both())] == [504, 504]
    held.let_go.set()


def test_the_event_loop_answers_while_models_work(started: Any, monkeypatch: Any) -> None:
    lifecycle = started(deadline_s=60, max_deadline_s=60)
    app, held = apps.create(lifecycle), HeldRuns(lifecycle, monkeypatch)

    async def ask() -> bool:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            long = asyncio.create_task(client.post("/rerank", json={"query": "q", "texts": ["a text"]}))
            assert await asyncio.to_thread(held.began.wait, 60)
            assert (await client.get("/livez")).status_code == 200
            first = not long.done()
            held.let_go.set()
            assert (await long).status_code == 200
            return first

    assert asyncio.run(ask())


def test_a_client_that_goes_stops_the_work(started: Any, monkeypatch: Any) -> None:
    lifecycle = started()
    app, held = apps.create(lifecycle), HeldRuns(lifecycle, monkeypatch)
    body = json.dumps({"query": "q", "texts": [f"text {number}" for number in range(1000)]}).encode()
    sent: list[int] = []

    async def go_away() -> None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            assert await asyncio.to_thread(held.began.wait, 60)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message.get("status", 0))

        scope = {"type": "http", "method": "POST", "path": "/rerank", "raw_path": b"/rerank", "query_string": b"",
                 "headers": [], "http_version": "1.1", "scheme": "http", "server": ("test", 80), "client": ("test", 1),
                 "root_path": "", "asgi": {"version": "3.0"}}  # fmt: skip
        await app(scope, receive, send)

    asyncio.run(go_away())
    assert sent[0] == 499
    held.let_go.set()
    until = time.monotonic() + 60
    while lifecycle.scheduler.stats().items or lifecycle.scheduler.stalled_s():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert sum(held.runs) < 30, "of 1000 texts"


def test_equal_requests_at_one_moment_compute_once(started: Any, monkeypatch: Any) -> None:
    lifecycle = started()
    app, runs = apps.create(lifecycle), slow(lifecycle, monkeypatch, 0.1)

    async def many() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            body = {"query": "q", "texts": ["one", "two"]}
            return list(await asyncio.gather(*(client.post("/rerank", json=body) for _ in range(20))))

    answers = asyncio.run(many())
    assert {response.text for response in answers} == {answers[0].text}
    assert answers[0].status_code == 200
    assert runs == [1, 1]


def test_releases_change_under_load_and_each_answer_is_of_the_release_it_names(fresh: Any) -> None:
    first, second = fresh.publish(1), fresh.publish(2)
    fresh.releases.promote(first, reason="test")
    lifecycle = Lifecycle(patient(workspace=fresh.path, threads=2, poll_s=0.02))
    lifecycle.start()
    app = apps.create(lifecycle)
    scores = {name: relevance(fresh.models[name].score("q", "a new sorted list")) for name in (first, second)}

    async def load() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            responses: list[httpx.Response] = []
            for turn in range(6):
                release = (second, first)[turn % 2]
                fresh.releases.promote(release, reason="test")
                until = time.monotonic() + PATIENCE_S
                while not responses or responses[-1].headers["x-release"] != release:
                    assert time.monotonic() < until
                    body = {"query": "q", "texts": ["a new sorted list", f"noise {len(responses)}"]}
                    responses += await asyncio.gather(*(client.post("/rerank", json=body) for _ in range(4)))
            return responses

    try:
        answers = asyncio.run(load())
    finally:
        lifecycle.stop()
    assert {response.status_code for response in answers} == {200}
    assert {response.headers["x-release"] for response in answers} == {first, second}
    for response in answers:
        (score,) = [item["score"] for item in response.json() if item["index"] == 0]
        assert score == pytest.approx(scores[response.headers["x-release"]], abs=1e-5)


# Pages.


def test_pages_need_nothing_from_other_hosts(client: TestClient) -> None:
    for path in ("/", "/docs"):
        response = client.get(path)
        assert response.headers["content-type"].startswith("text/html")
        page = response.text.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in page
        assert "https:" not in page
        assert "innerHTML" not in page
        assert "default-src 'none'" in response.headers["content-security-policy"]


def test_the_schema_describes_every_endpoint(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert {"/rerank", "/v1/rerank", "/v2/rerank", "/search", "/v1/embeddings", "/embed", "/v1/models", "/info",
            "/livez", "/readyz", "/health", "/metrics"} <= set(schema["paths"])  # fmt: skip
    body = schema["paths"]["/rerank"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["query"]
    text = json.dumps(schema)
    assert "#/$defs" not in text
