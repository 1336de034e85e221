"""Shards that answer garbage, late, or for another collection: each is named with the reason, and the rest is answered.

The shards are small HTTP servers in this process; what they answer is what a shard answers, changed by each test.
"""

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from index import ann
from index.shards import shard_of
from serving.errors import InvalidRequestError, NotReadyError, ServingError
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.runtime.scheduler import Scheduler
from serving.scoring import shard_candidates, sharded
from serving.scoring.answers import SearchDetails, SearchResult
from serving.scoring.searcher import Searcher
from serving.scoring.shard_candidates import ShardQuery
from serving.scoring.sharded import ShardClient, ShardedSearcher
from tests.serving.divided_collection import CONFIGS, QUERIES, Collection, searcher_of

COUNT = 2
Json = dict[str, Any]
Content = Callable[[Json], bytes]
"""The bytes that a shard sends in place of an answer."""


@dataclass
class FaultyShard:
    """A shard behind HTTP whose answers can be replaced."""

    searcher: Searcher
    content: Content | None = None
    """None sends the right answer."""
    status: int = 200
    pause_s: float = 0.0
    """Seconds before the answer, and between the bytes of one that `content` gives."""
    server: ThreadingHTTPServer = field(init=False)

    def __post_init__(self) -> None:
        shard = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                shard.reply(self, body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def reply(self, handler: BaseHTTPRequestHandler, body: Json) -> None:
        body.pop("collection")
        query = {name: value for name, value in body.items() if value is not None}
        answer = shard_candidates.answer(
            self.searcher, ShardQuery(**{"vector": None, "filters": {}, "terms": False, **query}), Deadline.never()
        )
        sent = json.dumps(answer).encode() if self.content is None else self.content(json.loads(json.dumps(answer)))
        time.sleep(self.pause_s)
        handler.send_response(self.status)
        handler.send_header("content-length", str(len(sent)))
        handler.send_header("location", "http://127.0.0.1:1/")
        handler.end_headers()
        pieces = [sent] if not self.pause_s or self.content is None else [bytes([byte]) for byte in sent]
        try:
            for piece in pieces:
                handler.wfile.write(piece)
                time.sleep(self.pause_s)
        except OSError:
            pass  # The asking side is gone.


@dataclass
class FaultyCollection:
    """Shards over HTTP, the first of which misbehaves, and the service that asks them."""

    shards: list[FaultyShard]
    front: ShardedSearcher

    def search(self, seconds: float = 60.0, **details: Any) -> SearchResult:
        options = RequestOptions(Deadline.after(seconds))
        filters = details.pop("filters", None)
        return self.front.search(
            QUERIES[0], top_n=30, retrieve=30, filters=filters, details=SearchDetails(**details), options=options
        )


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return Collection.of(tmp_path_factory.mktemp("faults"), CONFIGS["fields, passages and votes"], 7)


@pytest.fixture
def faulty(collection: Collection) -> Iterator[FaultyCollection]:
    front, client = collection.divided(COUNT)
    shards = [FaultyShard(searcher) for searcher in client.searchers]
    with_http, scheduler = ShardClient([shard.url for shard in shards]), Scheduler(1)
    path = collection.run.workspace / "artifacts" / "release" / front.release
    yield FaultyCollection(shards, searcher_of(path, with_http, scheduler))
    with_http.close()
    scheduler.stop()
    for shard in shards:
        shard.server.shutdown()
        shard.server.server_close()


def changed(change: Callable[[Json], object]) -> Content:
    """The answer of a shard after a change."""

    def content(answer: Json) -> bytes:
        change(answer)
        return json.dumps(answer).encode()

    return content


def document_of_another_shard(answer: Json) -> None:
    other = next(f"d{number}" for number in range(100) if shard_of(f"d{number}", COUNT) != answer["shard"])
    answer["documents"][0]["doc_id"] = other


FAULTS: dict[str, tuple[Content, str]] = {
    "a web page": (lambda _: b"<html>502 Bad Gateway</html>", "its answer cannot be read: the body: Invalid JSON"),
    "nothing": (lambda _: b"", "its answer cannot be read"),
    "a list": (lambda _: b"[]", "its answer cannot be read: the body"),
    "an empty object": (lambda _: b"{}", "its answer cannot be read: release: Field required"),
    "cut off": (lambda answer: json.dumps(answer).encode()[:-9], "its answer cannot be read: the body: Invalid JSON"),
    "bytes that are no text": (lambda _: bytes(range(128, 256)), "its answer cannot be read"),
    "a score that is null": (
        changed(lambda answer: answer["semantic"][0].__setitem__(1, None)),
        r"its answer cannot be read: semantic.0.1",
    ),
    "a score that is not a number": (
        changed(lambda answer: answer["documents"][0].update(bm25=float("nan"))),
        r"its answer cannot be read: documents.0.bm25",
    ),
    "a feature that is null": (
        changed(lambda answer: answer["documents"][0]["features"].update({"encoder.title": None})),
        r"its answer cannot be read: documents.0.features.encoder.title",
    ),
    "a text in place of a number": (
        changed(lambda answer: answer.update(shard="0")),
        "its answer cannot be read: shard",
    ),
    "a feature is left out": (
        changed(lambda answer: answer["documents"][0]["features"].clear()),
        r"gives no \w+\.\w+ of document",
    ),
    "no cosine": (changed(lambda answer: answer["documents"][0].update(cosine=None)), "gives no cosine of document"),
    "a row without its document": (changed(lambda answer: answer["documents"].clear()), "without its document"),
    "a document twice": (
        changed(lambda answer: answer["documents"].append(answer["documents"][0])),
        r"gives row \d+ as two documents",
    ),
    "an id of two rows": (
        changed(lambda answer: answer["documents"].append({**answer["documents"][0], "row": 999})),
        r"gives '.*' as two documents",
    ),
    "a row twice in the lexical list": (
        changed(lambda answer: answer["lexical"].append(answer["lexical"][0])),
        r"lists row \d+ twice",
    ),
    "a row twice in the semantic list": (
        changed(lambda answer: answer["semantic"].append(answer["semantic"][0])),
        r"lists row \d+ twice",
    ),
    "a document of another shard": (
        changed(document_of_another_shard),
        r"gives document .* of shard 2 as one of shard 1",
    ),
    "another collection": (
        changed(lambda answer: answer.update(collection="f" * 32)),
        "holds a shard of another collection",
    ),
    "a shard that there is not": (changed(lambda answer: answer.update(shard=COUNT)), r"holds shard 3 of 2"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_answer_that_cannot_be_right_is_named_and_the_others_are_given(faulty: FaultyCollection, name: str) -> None:
    bad, good = faulty.shards
    complete = faulty.search()
    assert complete.shards is not None
    assert list(complete.shards.missing) == []
    bad.content, reason = FAULTS[name]
    result = faulty.search()
    assert result.shards is not None
    assert (result.shards.answered, result.shards.of) == (1, COUNT)
    (missing,) = result.shards.missing
    assert missing.shard == bad.url
    assert re.search(reason, missing.reason), missing.reason
    kept = [hit.doc_id for hit in complete.lexical if shard_of(hit.doc_id, COUNT) == 1]
    assert [hit.doc_id for hit in result.lexical] == kept
    good.content = bad.content
    with pytest.raises(NotReadyError, match="no shard of the documents answers"):
        faulty.search()


@pytest.mark.parametrize(("status", "reason"), [(500, "HTTP 500: <html>"), (302, "HTTP 302"), (204, "HTTP 204")])
def test_a_status_other_than_200_is_named(faulty: FaultyCollection, status: int, reason: str) -> None:
    bad, _ = faulty.shards
    bad.status, bad.content = status, lambda _: b"<html>" if status != 204 else b""
    result = faulty.search()
    assert result.shards is not None
    (missing,) = result.shards.missing
    assert missing.reason.startswith(reason)


def test_two_services_with_one_shard_are_named(faulty: FaultyCollection) -> None:
    first, second = faulty.shards
    second.searcher = first.searcher
    result = faulty.search()
    assert result.shards is not None
    (missing,) = result.shards.missing
    assert (missing.shard, missing.reason) == (second.url, "holds shard 1, as another one does")
    assert {shard_of(hit.doc_id, COUNT) for hit in result.reranked} == {0}


def test_a_row_of_another_shard_is_named(faulty: FaultyCollection) -> None:
    first, second = faulty.shards
    rows: list[int] = []

    def noted(answer: Json) -> bytes:
        rows.extend(item["row"] for item in answer["documents"])
        return json.dumps(answer).encode()

    first.content = noted
    faulty.search()

    def moved(answer: Json) -> None:
        old = answer["documents"][0]["row"]
        answer["documents"][0]["row"] = rows[0]
        for name in ("lexical", "semantic"):
            answer[name] = [[rows[0] if row == old else row, score] for row, score in answer[name]]

    second.content = changed(moved)
    result = faulty.search()
    assert result.shards is not None
    (missing,) = result.shards.missing
    assert (missing.shard, missing.reason) == (second.url, "lists a row of another shard")


def test_a_probe_names_missing_shards_and_only_a_search_logs_them(
    faulty: FaultyCollection, caplog: pytest.LogCaptureFixture
) -> None:
    for shard in faulty.shards:
        assert faulty.front.probe_shards().answered == COUNT - sum(item.content is not None for item in faulty.shards)
        shard.content = lambda _: b""
    probed = faulty.front.probe_shards()
    assert (probed.answered, [item.shard for item in probed.missing]) == (0, [shard.url for shard in faulty.shards])
    assert not caplog.records
    faulty.shards[1].content = None
    faulty.search()
    (line,) = [record.getMessage() for record in caplog.records if record.name == sharded.__name__]
    assert line.startswith(f"shard {faulty.shards[0].url}: its answer cannot be read")


def test_an_endless_answer_ends_at_its_limit(faulty: FaultyCollection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "MAX_ANSWER_BYTES", 2**20)
    faulty.shards[0].content = lambda _: b" " * 2**24
    result = faulty.search()
    assert result.shards is not None
    (missing,) = result.shards.missing
    assert missing.reason == "its answer has more than 1,048,576 bytes"


def test_a_shard_that_sends_a_byte_at_a_time_is_late(faulty: FaultyCollection) -> None:
    faulty.shards[0].content, faulty.shards[0].pause_s = changed(lambda _: None), 0.05
    began = time.monotonic()
    result = faulty.search(seconds=2.0)
    assert time.monotonic() - began < 30
    assert result.shards is not None
    (missing,) = result.shards.missing
    assert missing.reason.startswith("no answer in")


def test_requests_that_wait_for_one_shard_hold_up_no_other(faulty: FaultyCollection) -> None:
    """More requests than threads: the slow shard is late in each, the other in none."""
    slow, fast = faulty.shards
    slow.pause_s = 60.0
    fast.content = lambda answer: json.dumps(answer).encode()
    count = 3 * sharded.THREADS
    with ThreadPoolExecutor(count) as pool:
        client = faulty.front._shards
        body = {"query": "list", "depth": 3, "collection": faulty.front.collection_id}
        calls = [pool.submit(client.ask, body, Deadline.after(5.0)) for _ in range(count)]
        outcomes = [item.result() for item in calls]
    assert {type(first).__name__ for first, _ in outcomes} == {"MissingShard"}
    assert {type(second).__name__ for _, second in outcomes} == {"CandidatesAnswer"}


def test_while_a_shard_is_missing_its_fields_may_be_asked_for(faulty: FaultyCollection) -> None:
    for details in ({"filters": {"colour": ["red"]}}, {"facets": ("colour",)}):
        with pytest.raises(InvalidRequestError, match="no document has a field 'colour'"):
            faulty.search(**details)
        faulty.shards[0].content = lambda _: b""
        result = faulty.search(**details)
        assert result.shards is not None
        assert len(result.shards.missing) == 1
        assert bool(result.reranked) == ("facets" in details)
        faulty.shards[0].content = None


def test_a_shard_with_a_vector_that_is_not_finite_refuses_by_name(collection: Collection, tmp_path: Path) -> None:
    _, client = collection.divided(COUNT)
    holder = max(client.searchers, key=lambda item: len(item.lexical.doc_ids))
    folder = tmp_path / holder.release
    shutil.copytree(collection.run.workspace / "artifacts" / "release" / holder.release, folder)
    path = folder / "index.text" / ann.FILE
    index = faiss.read_index(str(path))
    vectors = index.reconstruct_n(0, index.ntotal)
    vectors[:] = np.nan
    index.reset()
    index.add(vectors)
    faiss.write_index(index, str(path))
    damaged = Searcher(folder, verify=False)
    query = ShardQuery(
        query=QUERIES[0],
        depth=30,
        vector=[1.0] + [0.0] * (damaged.encoder.dimensions - 1),
        filters={},
        terms=False,
        features=["encoder.text"],
    )
    message = r"encoder\.text of document .* is not finite; `relevance index verify`"
    with pytest.raises(ServingError, match=message):
        shard_candidates.answer(damaged, query, Deadline.never())
    with pytest.raises(ServingError, match=message):
        damaged.search(QUERIES[0], top_n=30, retrieve=30)
