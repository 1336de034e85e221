"""The parts of a search that are answered on request, and reranking with first-stage scores."""

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from index.analyzer import analyser
from index.document_store import filter_values
from pipeline.text import document_text
from serving.api import app as apps
from serving.rollout import comparison
from serving.rollout.lifecycle import Lifecycle
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.scoring import noise
from serving.scoring.reranker import relevance
from tests.serving.patience import patient

QUERY = "sort a list"


@pytest.fixture(scope="module")
def lifecycle(tiny: Any) -> Iterator[Lifecycle]:
    lifecycle = Lifecycle(patient(workspace=tiny.path, release=tiny.releases.resolve("live"), threads=1))
    lifecycle.start()
    yield lifecycle
    lifecycle.close()


@pytest.fixture(scope="module")
def client(lifecycle: Lifecycle) -> TestClient:
    return TestClient(apps.create(lifecycle), base_url="http://localhost")


def refused(response: Any, words: str) -> None:
    assert response.status_code == 422, response.text
    assert words in response.json()["message"]


# First-stage scores.


def candidates(lifecycle: Lifecycle) -> tuple[list[dict[str, Any]], list[str]]:
    """Every document with its BM25, as a client that has a first stage sends them, and their order in a search."""
    searcher = lifecycle.current
    results = searcher.search(QUERY, top_n=100, retrieve=100)
    bm25 = {answer.doc_id: answer.score for answer in results.lexical}
    rows = [searcher.documents.get(row) for row in range(len(searcher.documents))]
    documents = [
        {"id": item.doc_id, "title": item.title, "text": item.text, "score": bm25.get(item.doc_id, 0.0)}
        for item in rows
    ]
    return documents, [answer.doc_id for answer in results.reranked]


def test_bm25_scores_in_give_the_fused_order_of_a_search(client: TestClient, lifecycle: Lifecycle) -> None:
    documents, expected = candidates(lifecycle)
    search_answer = lifecycle.current.search(QUERY, top_n=100, retrieve=100)
    body = {"query": QUERY, "documents": documents, "raw_scores": True}
    results = client.post("/v1/rerank", json=body).json()["results"]
    assert [documents[result["index"]]["id"] for result in results] == expected
    assert [result["relevance_score"] for result in results] == pytest.approx(
        [answer.score for answer in search_answer.reranked], abs=1e-4
    )
    assert [relevance(result["ranker_score"]) for result in results] == pytest.approx(
        [answer.relevance for answer in search_answer.reranked], abs=1e-6
    )


def test_both_forms_and_shapes_have_one_order(client: TestClient, lifecycle: Lifecycle) -> None:
    documents, _ = candidates(lifecycle)
    scores = [document.pop("score") for document in documents]
    carried = [{**document, "score": score} for document, score in zip(documents, scores, strict=True)]
    texts = [document_text(document["title"], document["text"]) for document in documents]
    bodies = (
        {"documents": carried},
        {"documents": documents, "first_stage_scores": scores},
        {"texts": texts, "first_stage_scores": scores},
    )
    orders = []
    for body in bodies:
        answer = client.post("/rerank", json={"query": QUERY, **body}).json()
        results = answer if isinstance(answer, list) else answer["results"]
        orders.append([result["index"] for result in results])
        values = [result.get("score", result.get("relevance_score")) for result in results]
        assert values == sorted(values, reverse=True)
        assert all(0 <= value <= 1 for value in values)
    assert orders[0] == orders[1] == orders[2]
    plain = client.post("/rerank", json={"query": QUERY, "documents": documents}).json()["results"]
    alone = client.post("/rerank", json={"query": QUERY, "documents": carried, "fused": False}).json()["results"]
    assert [item["index"] for item in plain] == [item["index"] for item in alone] != orders[0]
    assert all("ranker_score" not in item for item in alone)


def test_without_first_stage_scores_bm25_is_taken_by_the_words_of_the_release(
    client: TestClient, lifecycle: Lifecycle
) -> None:
    documents, expected = candidates(lifecycle)
    texts = [document_text(document["title"], document["text"]) for document in documents]
    scored = lifecycle.current.search(QUERY, top_n=100, retrieve=100).reranked
    body = {"query": QUERY, "texts": texts, "fused": True, "raw_scores": True}
    results = client.post("/rerank", json=body).json()
    assert [documents[result["index"]]["id"] for result in results] == expected
    assert [result["score"] for result in results] == pytest.approx([answer.score for answer in scored], abs=1e-4)


def test_a_release_whose_ranker_alone_is_below_bm25_answers_in_the_fused_order(
    client: TestClient, lifecycle: Lifecycle, monkeypatch: Any
) -> None:
    documents, expected = candidates(lifecycle)
    for document in documents:
        del document["score"]
    body = {"query": QUERY, "documents": documents}

    def order(**more: Any) -> list[str]:
        results = client.post("/v1/rerank", json={**body, **more}).json()["results"]
        return [documents[result["index"]]["id"] for result in results]

    alone = order()
    searcher = lifecycle.current
    monkeypatch.setattr(searcher, "_fusion", dataclasses.replace(searcher.fusion, rerank="fused"))
    assert order() == expected != alone
    assert order(fused=False) == alone
    texts = [document_text(document["title"], document["text"]) for document in documents]
    question = comparison.Rerank(QUERY, texts)
    answered = question.ask(searcher, RequestOptions(Deadline.never()))
    assert [documents[index]["id"] for index in answered.order] == expected


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"texts": ["a", "b"], "first_stage_scores": [1.0]}, "1 first_stage_scores for 2 documents"),
        ({"texts": ["a", "b"], "first_stage_scores": [1.0, -1.0]}, "never below 0"),
        ({"texts": ["a", "b"], "first_stage_scores": [1.0, True]}, "a first-stage score is true"),
        ({"texts": ["a", "b"], "first_stage_scores": [1.0, "2"]}, "a first-stage score is '2'"),
        ({"texts": ["a"], "first_stage_scores": [1e300]}, "finite number"),
        ({"documents": [{"text": "a", "score": 1.0}, "b"]}, "documents[1].score is null"),
        ({"documents": [{"text": "a", "score": "good"}]}, '"fused": false'),
        ({"documents": [{"text": "a", "score": 1}], "first_stage_scores": [1]}, "send one of them"),
        ({"texts": ["a"], "first_stage_scores": [1], "fused": True, "cascade": True}, "in a cascade"),
    ],
)
def test_first_stage_scores_that_cannot_be_used_are_refused(
    client: TestClient, more: dict[str, Any], words: str
) -> None:
    refused(client.post("/rerank", json={"query": QUERY, **more}), words)


def test_a_cascade_takes_first_stage_scores_in_both_forms(client: TestClient) -> None:
    body = {"query": QUERY, "texts": ["open a file", "a sorted list"], "first_stage_scores": [-3, 1], "cascade": True}
    answer = client.post("/rerank", json=body)
    assert answer.status_code == 200, answer.text
    assert {item["index"] for item in answer.json()} == {0, 1}


def test_a_release_without_a_fusion_says_so(client: TestClient, lifecycle: Lifecycle, monkeypatch: Any) -> None:
    monkeypatch.setattr(lifecycle.current, "_fusion", None)
    answer = client.post("/rerank", json={"query": QUERY, "texts": ["a"], "first_stage_scores": [1]})
    assert answer.status_code == 404
    assert "no fusion" in answer.json()["message"]


# The parts of a search.


def test_one_list_with_chosen_fields(client: TestClient, lifecycle: Lifecycle) -> None:
    complete = client.post("/search", json={"query": QUERY}).json()
    answer = client.post(
        "/search", json={"query": QUERY, "lists": ["reranked"], "fields": ["year", "text", "x"]}
    ).json()
    assert ("lexical" in answer, "semantic" in answer) == (False, False)
    fields = [hit.pop("fields") for hit in answer["reranked"]]
    assert answer["reranked"] == complete["reranked"]
    for hit, given in zip(answer["reranked"], fields, strict=True):
        document = lifecycle.current.documents.get(int(hit["doc_id"][1:]))
        assert given == {"year": document.extra["year"], "text": document.text, "x": None}
    lexical = client.post("/search", json={"query": QUERY, "lists": ["lexical"]}).json()
    plain, alone = ([(hit["doc_id"], hit["score"]) for hit in answer["lexical"]] for answer in (complete, lexical))
    assert alone == plain
    assert (lexical["cache_hits"], lexical["cache_misses"]) == (0, 0)  # No model ran.


def test_the_shares_of_an_explanation_sum_to_the_score(client: TestClient, lifecycle: Lifecycle) -> None:
    answer = client.post("/search", json={"query": QUERY, "explain": True, "top_n": 20}).json()
    for hit in answer["reranked"]:
        parts = hit["explain"]["features"]
        assert sum(part["share"] for part in parts.values()) == pytest.approx(hit["score"], abs=1e-5)
        assert all(part["share"] == pytest.approx(part["value"] * part["weight"]) for part in parts.values())
        (bm25,) = lifecycle.current.lexical.scores(QUERY, [int(hit["doc_id"][1:])])
        assert sum(hit["explain"]["terms"].values()) == pytest.approx(float(bm25), abs=1e-5)
    assert all("explain" not in hit for hit in answer["lexical"])


def test_facets_count_the_candidates(client: TestClient, lifecycle: Lifecycle) -> None:
    answer = client.post("/search", json={"query": QUERY, "facets": ["kind", "tags"], "top_n": 100}).json()
    rows = [int(hit["doc_id"][1:]) for hit in answer["reranked"]]
    assert len(rows) == answer["candidates"]
    for name, counts in answer["facets"].items():
        values = [set(filter_values(lifecycle.current.documents.get(row).extra.get(name))) for row in rows]
        assert 0 < len(counts) <= 20
        for value, count in counts.items():
            assert count == sum(value in held for held in values)
    refused(client.post("/search", json={"query": QUERY, "facets": ["colour"]}), "there are: kind, tags, year")


def test_a_least_relevance_leaves_the_rest_in_order(client: TestClient) -> None:
    all_hits = client.post("/search", json={"query": QUERY, "top_n": 30}).json()["reranked"]
    bound = sorted(hit["relevance"] for hit in all_hits)[len(all_hits) // 2]
    some = client.post("/search", json={"query": QUERY, "top_n": 30, "min_relevance": bound}).json()["reranked"]
    kept = [hit["doc_id"] for hit in some]
    assert all(hit["relevance"] >= bound for hit in some)
    assert kept == [hit["doc_id"] for hit in all_hits if hit["relevance"] >= bound]


def test_random_letters_fit_nothing_and_known_words_do(lifecycle: Lifecycle, monkeypatch: Any) -> None:
    searcher = lifecycle.current
    assert searcher.search("sort").fits is True
    monkeypatch.setattr(searcher._chance, "_level", None)
    fits = [searcher.search(query).fits for query in noise.queries()]
    # As many lie above the level as its definition says.
    assert sum(bool(value) for value in fits) <= len(fits) * (1 - noise.SHARE) + 1


def test_a_document_opens_with_those_nearest_to_it(client: TestClient, lifecycle: Lifecycle, tiny: Any) -> None:
    searcher, models = lifecycle.current, tiny.models[lifecycle.current.release]
    answer = client.get("/document", params={"id": "d5", "neighbours": 4}).json()
    document = searcher.documents.get(5)
    assert (answer["title"], answer["text"], answer["cut"]) == (document.title, document.text, False)
    assert answer["fields"] == document.extra
    rows = [searcher.documents.get(row) for row in range(len(searcher.documents))]
    vectors = {item.doc_id: models.vector(document_text(item.title, item.text)) for item in rows}
    cosines = {name: float(vector @ vectors["d5"]) for name, vector in vectors.items() if name != "d5"}
    assert [near["score"] for near in answer["neighbours"]] == pytest.approx(
        sorted(cosines.values(), reverse=True)[:4], abs=1e-4
    )
    assert client.get("/document", params={"id": "../d5/\x00"}).status_code == 404
    refused(client.get("/document"), "id")
    refused(client.get("/document", params={"id": "d5", "neighbours": 51}), "neighbours")


def test_an_unknown_key_of_a_search_names_the_nearest(client: TestClient) -> None:
    refused(client.post("/search", json={"query": "q", "filter": {"year": 1}}), "'filter' is not known; did you mean")
    refused(client.post("/search", json={"query": "q", "topn": 3}), "did you mean top_n?")
    refused(client.get("/search", params={"q": "q", "topn": 3}), "did you mean top_n?")
    refused(client.post("/search", json={"query": "q", "limit": 3}), "'limit' is not known; did you mean top_n?")
    refused(client.get("/search", params={"q": "q", "size": 3}), "'size' is not known; did you mean top_n?")
    refused(client.post("/search", json={"query": "q", "z" * 500: 3}), "there are query, top_n")
    refused(client.post("/search", json={"query": "q", "lists": ["best"]}), "lists[0]")
    refused(client.post("/search", json={"query": "q", "fields": ["a"] * 2}), "twice")
    refused(client.post("/search", json={"query": "q", "fields": [str(number) for number in range(21)]}), "at most 20")
    assert client.post("/search", json={"query": "q", "unknown": None}).status_code == 200


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("/search?q=a+list&q=a+file", "q stands 2 times in the link; send one"),
        ("/search?q=a+list&top_n=3&top_n=3&top_n=9", "top_n stands 3 times"),
        ("/search?q=a+list&release=1&release=2", "release stands 2 times"),
        ("/document?id=d5&id=d6", "id stands 2 times"),
        ("/document?id=d5&neighbors=3", "'neighbors' is not known; did you mean neighbours?"),
    ],
)
def test_no_parameter_of_a_link_is_left_out_silently(client: TestClient, link: str, words: str) -> None:
    refused(client.get(link), words)
    repeated = "lists=lexical&lists=semantic&filter=year:2001&filter=year:2002&fields=text&facets=kind&facets=year"
    assert client.get(f"/search?q=a+list&{repeated}").status_code == 200


def test_a_link_and_a_body_may_say_q_or_query_and_take_the_same_parts(client: TestClient) -> None:
    def without_times(answer: Any) -> Any:
        return {key: value for key, value in answer.json().items() if not key.startswith(("cache", "milli"))}

    by_q, by_query = (client.get("/search", params={name: QUERY}) for name in ("q", "query"))
    assert without_times(by_q) == without_times(by_query)
    for name in ("q", "query"):
        assert without_times(client.post("/search", json={name: QUERY})) == without_times(by_q)
    assert client.post("/search", json={"q": QUERY, "query": QUERY}).status_code == 200
    refused(client.get("/search", params={"q": "a", "query": "b"}), "differ")
    refused(client.post("/search", json={"q": "a", "query": "b"}), "differ")
    refused(client.post("/search", json={"q": 5}), "query")
    link = {"q": QUERY, "lists": "reranked", "facets": "year", "explain": "true"}
    body = {"query": QUERY, "lists": ["reranked"], "facets": ["year"], "explain": True}
    assert without_times(client.get("/search", params=link)) == without_times(client.post("/search", json=body))


# Marks.


def marked_by_the_page(texts: list[dict[str, Any]], line_break: str = "") -> list[str]:
    """The text that the page draws for texts and their matches, by its own functions run in Node.

    Args:
        line_break: what stands where a line may end inside a word; marks stand in [ ].
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    page = (Path(apps.__file__).parents[1] / "page.html").read_text(encoding="utf-8")
    functions = re.findall(r"^function (?:withBreaks|marked)\(.*?^}", page, re.MULTILINE | re.DOTALL)
    assert len(functions) == 2
    script = f"""
        const el = (tag, name, text) => tag === "wbr" ? {json.dumps(line_break)} : "[" + text + "]";
        {" ".join(functions)}
        const drawn = {json.dumps(texts)}.map(({{ text, spans }}) => {{
          const parts = [];
          marked({{ append: (...more) => parts.push(...more) }}, text, spans);
          return parts.join("");
        }});
        console.log(JSON.stringify(drawn));
    """
    done = subprocess.run([node, "-e", script], capture_output=True, text=True, timeout=60, check=True)
    drawn: list[str] = json.loads(done.stdout)
    return drawn


@pytest.mark.parametrize("query", [QUERY, "sorting 排序", "TITLE of function_3!", "clock"])
def test_the_page_marks_what_the_lexical_index_finds(client: TestClient, lifecycle: Lifecycle, query: str) -> None:
    answer = client.post("/search", json={"query": query, "matches": True, "top_n": 50}).json()
    terms = lifecycle.current.lexical.query_terms(query)
    analyse, wanted = analyser(terms.language, terms.version), terms.marked
    assert wanted
    hits = [hit for name in ("lexical", "semantic", "reranked") for hit in answer[name]]
    texts = [{"text": hit[part], "spans": hit["matches"][part]} for hit in hits for part in ("title", "snippet")]
    for item, drawn in zip(texts, marked_by_the_page(texts), strict=True):
        assert drawn.replace("[", "").replace("]", "") == item["text"].replace("[", "").replace("]", "")
        marked_words = re.findall(r"\[(.*?)\]", drawn)
        assert marked_words == [item["text"][start:end] for start, end in item["spans"]]
        assert all(wanted & set(analyse(part)) for part in marked_words)
        assert bool(marked_words) == bool(wanted & set(analyse(item["text"])))
    assert any(item["spans"] for item in texts)


def test_a_long_name_is_broken_between_its_parts_and_a_number_is_not() -> None:
    texts = [{"text": "pandas.DataFrame.drop_duplicates 0.5", "spans": [[22, 32]]}]
    assert marked_by_the_page(texts, "|") == ["pandas.|DataFrame.|drop_[duplicates] 0.5"]


def test_matches_count_characters_and_not_utf16(client: TestClient) -> None:
    assert marked_by_the_page([{"text": "🙂🙂 a list", "spans": [[5, 9]]}]) == ["🙂🙂 a [list]"]
    plain = client.post("/search", json={"query": QUERY}).json()
    assert not any("matches" in hit for hit in plain["reranked"])
    link = client.get("/search", params={"q": QUERY, "matches": "true"}).json()
    assert link["lexical"][0]["matches"]["title"] == [[0, 6]]  # sorted
