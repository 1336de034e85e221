"""Documents in shards, each behind a service of its own: one answer for all, and none that is short in silence."""

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from flows import reindex, sources
from flows import shards as divided
from index.shards import shard_of
from pipeline import release_parts
from pipeline.errors import ArtifactError, ConfigError, MissingError, SchemaError
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.runtime.scheduler import Scheduler
from serving.scoring.answers import SearchDetails
from serving.scoring.process_caches import Caches
from serving.scoring.searcher import Searcher
from serving.scoring.sharded import NO_DOCUMENT, ShardClient, ShardedSearcher
from tests.serving import processes
from tests.serving.conftest import DOCUMENTS, TinyWorkspace
from tests.serving.processes import Server

SHARDS = 3
QUERIES = (
    "sort a list",
    "open a file",
    "读 列表",
    "function 3 words",
    "json document",
    "clock sleep",
    "nothing at all",
)


@dataclass
class Divided:
    """A release over all documents, and the same documents in shards behind services."""

    tiny: TinyWorkspace
    undivided: Searcher
    figures: dict[str, Any]
    services: list[Server]
    front: Server

    def search(self, seconds: float = 60.0, **body: Any) -> dict[str, Any]:
        try:
            return {"status": 200, **post(f"{self.front.url}/search", body, seconds)}
        except urllib.error.HTTPError as error:
            with error:
                return {"status": error.code, **json.load(error)}

    def shard_ids(self, missing: int) -> list[str]:
        """Ids of the documents of all shards but one."""
        return [f"d{row}" for row in range(len(DOCUMENTS)) if shard_of(f"d{row}", SHARDS) != missing]


def post(url: str, body: dict[str, Any], seconds: float = 60.0) -> Any:
    headers = {"content-type": "application/json", "x-request-timeout-ms": str(int(1000 * seconds))}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Divided]:
    folder = tmp_path_factory.mktemp("shards")
    tiny = TinyWorkspace(folder / "workspace")
    tiny.releases.promote(tiny.publish(1), reason="test")
    documents = sources.named(tiny.source(folder / "documents"))
    figures = divided.reindex(documents, tiny.path, SHARDS)
    services = [processes.start(tiny.path, RELEVANCE_RELEASE=shard["release"]) for shard in figures["shards"]]
    addresses = ",".join(service.url for service in services)
    front = processes.start(tiny.path, RELEVANCE_RELEASE=figures["release"], RELEVANCE_SHARDS=addresses)
    yield Divided(tiny, Searcher(tiny.folder(tiny.releases.resolve("live"))), figures, services, front)
    for server in (front, *services):
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGCONT)
            server.stop()


def plain(answer: dict[str, Any], name: str) -> list[tuple[Any, ...]]:
    keys = ("doc_id", "title", "snippet", "rank", "lexical_rank", "semantic_rank", "rank_change")
    return [tuple(hit[key] for key in keys) for hit in answer[name]]


def test_every_document_is_in_one_shard(shards: Divided) -> None:
    held = [shard["documents"] for shard in shards.figures["shards"]]
    assert sum(held) == len(DOCUMENTS) == shards.figures["documents"]
    for number, shard in enumerate(shards.figures["shards"]):
        path = shards.tiny.folder(shard["release"]) / "lexical" / "ids.parquet"
        ids = pq.read_table(path).column("doc_id").to_pylist()
        assert ids == [f"d{row}" for row in range(len(DOCUMENTS)) if shard_of(f"d{row}", SHARDS) == number]
    assert shards.tiny.releases.resolve("live") not in [shard["release"] for shard in shards.figures["shards"]]


@pytest.mark.parametrize("filters", [None, {"year": [2001, 2003]}, {"tags": ["t1"]}], ids=str)
def test_the_merged_answer_is_that_of_one_index(shards: Divided, filters: dict[str, Any] | None) -> None:
    from dataclasses import asdict

    for query in QUERIES:
        details = SearchDetails(explain=True, fields=("year",), facets=("kind",))
        single = asdict(
            shards.undivided.search(
                query, top_n=10, filters=filters, details=details, options=RequestOptions(Deadline.never())
            )
        )
        merged = shards.search(query=query, filters=filters, explain=True, fields=["year"], facets=["kind"])
        assert merged["status"] == 200
        assert merged["partial"] is False
        assert merged["shards"] == {"answered": SHARDS, "of": SHARDS, "missing": []}
        assert merged["candidates"] == single["candidates"]
        assert merged["facets"] == single["facets"]
        for name in ("lexical", "semantic", "reranked"):
            assert plain(merged, name) == plain(single, name), (query, name)
            scores = [[hit["score"] for hit in answer[name]] for answer in (single, merged)]
            np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=1e-6)
            assert [hit["fields"] for hit in merged[name]] == [hit["fields"] for hit in single[name]]
        for first, second in zip(single["reranked"], merged["reranked"], strict=True):
            assert first["explain"]["terms"].keys() == second["explain"]["terms"].keys()
            np.testing.assert_allclose(second["relevance"], first["relevance"], rtol=0, atol=1e-6)


def test_fields_that_no_shard_knows_are_refused(shards: Divided) -> None:
    for body in ({"filters": {"colour": "red"}}, {"facets": ["colour"]}):
        answer = shards.search(query="sort a list", **body)
        assert answer["status"] == 422
        assert "kind, tags, year" in answer["error"]


def test_given_texts_are_fused_as_by_one_index(shards: Divided) -> None:
    texts, bm25 = ["a sorted list", "open a file", "json"], [3.0, 1.0, 0.0]
    fused = shards.undivided.fused("sort a list", texts, bm25, RequestOptions(Deadline.never()))
    body = {"query": "sort a list", "texts": texts, "first_stage_scores": bm25, "raw_scores": True}
    answer = post(f"{shards.front.url}/rerank", body)
    scores = {item["index"]: item["score"] for item in answer}
    assert [scores[index] for index in range(3)] == pytest.approx(fused.values, abs=1e-6)
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(f"{shards.front.url}/rerank", {"query": "sort a list", "texts": texts, "fused": True})
    with caught.value as error:
        assert "send first_stage_scores" in json.load(error)["error"]


def test_a_whole_document_is_asked_of_its_shard(shards: Divided) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{shards.front.url}/document?id=d5", timeout=120)
    with caught.value as error:
        assert (error.code, json.load(error)["error"]) == (404, NO_DOCUMENT)
    with urllib.request.urlopen(f"{shards.front.url}/v1/models", timeout=120) as answer:
        assert json.load(answer)["unanswered"] == {"/document": NO_DOCUMENT}
    number = shard_of("d5", SHARDS)
    with urllib.request.urlopen(f"{shards.services[number].url}/document?id=d5", timeout=120) as answer:
        assert json.load(answer)["title"] == DOCUMENTS[5][0]


def test_a_release_must_be_the_one_of_models_and_fit_the_addresses(shards: Divided, tmp_path: Path) -> None:
    undivided = shards.tiny.folder(shards.tiny.releases.resolve("live"))
    models: dict[str, Any] = {"precision": "auto", "caches": Caches.of(2**20), "scheduler": Scheduler(1)}
    three, single = (ShardClient([f"http://127.0.0.1:{port}" for port in ports]) for ports in ((1, 2, 3), (1,)))
    with pytest.raises(ArtifactError, match="reindex --documents DOCUMENTS --shards N"):
        ShardedSearcher(undivided, three, **models)
    with pytest.raises(ConfigError, match="has 3 shards, and 1 addresses"):
        ShardedSearcher(shards.tiny.folder(shards.figures["release"]), single, **models)
    for client in (three, single):
        client.close()
    models["scheduler"].stop()
    documents = sources.named(shards.tiny.source(tmp_path / "documents"))
    with pytest.raises(ConfigError, match="--shards 1: give 2 or more"):
        divided.reindex(documents, shards.tiny.path, 1)
    with pytest.raises(SchemaError, match="would have no document"):
        divided.reindex(documents, shards.tiny.path, 500)


def test_a_release_without_an_encoder_says_so_when_it_is_indexed(fresh: TinyWorkspace, tmp_path: Path) -> None:
    ranker = release_parts.part(fresh.releases.open(fresh.publish(1)), "ranker")
    release = fresh.releases.publish({"ranker": ranker}, {}, {"name": "ranker"}).fingerprint
    documents = sources.named(fresh.source(tmp_path / "documents"))
    with pytest.raises(MissingError, match="has no encoder"):
        divided.reindex(documents, fresh.path, 2, release=release)
    with pytest.raises(MissingError, match="has no encoder"):
        reindex.reindex(documents, fresh.path, release=release)


def test_a_late_shard_and_a_dead_one_are_named_and_the_rest_is_answered(shards: Divided) -> None:
    late, reachable = shards.services[1], set(shards.shard_ids(1))
    for pid in (late.process.pid, *late.workers):
        os.kill(pid, signal.SIGSTOP)
    answer = shards.search(query="a list of documents", seconds=3.0)
    for pid in (*late.workers, late.process.pid):
        os.kill(pid, signal.SIGCONT)
    assert (answer["status"], answer["partial"]) == (200, True)
    assert (answer["shards"]["answered"], answer["shards"]["of"]) == (2, 3)
    assert [item["shard"] for item in answer["shards"]["missing"]] == [late.url]
    assert answer["shards"]["missing"][0]["reason"].startswith("no answer in")
    doc_ids = [hit["doc_id"] for hit in answer["reranked"]]
    assert doc_ids
    assert set(doc_ids) <= reachable

    late.stop()
    answer = shards.search(query="a list of documents")
    assert (answer["status"], answer["partial"]) == (200, True)
    assert [item["shard"] for item in answer["shards"]["missing"]] == [late.url]
    for service in (shards.services[0], shards.services[2]):
        service.stop()
    answer = shards.search(query="a list of documents")
    assert answer["status"] == 503
    assert "no shard of the documents answers" in answer["error"]
