import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows import gc
from pipeline import artifacts, release_parts
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError, MissingError
from pipeline.text import document_text
from serving.errors import ClientGoneError, DeadlineError, InferenceError, InvalidRequestError
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.scoring.report_excerpt import ReportExcerpt
from serving.scoring.reranker import relevance
from serving.scoring.searcher import Searcher


@pytest.fixture(scope="module")
def searcher(tiny: Any) -> Searcher:
    return Searcher(tiny.folder(tiny.releases.resolve("live")), threads=2)


def broken(tiny: Any, tmp_path: Path) -> Path:
    """A copy of the live release whose files may be damaged."""
    release = tiny.releases.resolve("live")
    copy = tmp_path / "artifacts" / "release" / release
    shutil.copytree(tiny.folder(release), copy)
    return copy


def test_gc_keeps_a_release_from_before_its_files_are_read(tiny: Any, tmp_path: Path, monkeypatch: Any) -> None:
    path, verify, in_use = broken(tiny, tmp_path), release_parts.verify, []

    def noted(folder: Path) -> Artifact:
        in_use.append(gc._in_use(folder))
        return verify(folder)

    monkeypatch.setattr(release_parts, "verify", noted)
    assert not gc._in_use(path)
    searcher = Searcher(path)
    assert in_use == [True]
    searcher._use.let_go()
    (path / artifacts.MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"manifest\.json: not a readable manifest"):
        Searcher(path)
    shutil.rmtree(path)
    with pytest.raises(MissingError, match="no such artifact"):
        Searcher(path)


def test_the_final_order_is_that_of_numpy_and_the_fusion(searcher: Searcher, tiny: Any) -> None:
    """Recomputed from the weights, with every document in the pool, so that recall plays no part."""
    models, query = tiny.models[searcher.release], "sort a list"
    results = searcher.search(query, top_n=100, retrieve=100)
    documents = [searcher.documents.get(row) for row in range(len(searcher.documents))]
    assert results.candidates == len(documents) == len(results.reranked)
    raw = {item.doc_id: models.score(query, document_text(item.title, item.text)) for item in documents}
    bm25 = {answer.doc_id: answer.score for answer in results.lexical}
    top = max(bm25.values())
    # The fusion of the tiny release: 1.0 ranker + 0.5 bm25.
    fused = {item.doc_id: raw[item.doc_id] + 0.5 * bm25.get(item.doc_id, 0.0) / top for item in documents}
    for answer in results.reranked:
        assert answer.score == pytest.approx(fused[answer.doc_id], abs=1e-4)
        assert answer.relevance == pytest.approx(relevance(raw[answer.doc_id]), abs=1e-4)
    assert [answer.score for answer in results.reranked] == sorted((a.score for a in results.reranked), reverse=True)
    cosines = {item.doc_id: models.vector(document_text(item.title, item.text)) for item in documents}
    for answer in results.semantic:
        assert answer.score == pytest.approx(float(cosines[answer.doc_id] @ models.vector(query)), abs=1e-4)


def test_ranks_and_their_changes_tell_where_a_document_stood(searcher: Searcher) -> None:
    results = searcher.search("a new sorted list", top_n=8, retrieve=8)
    for name in ("lexical", "semantic", "reranked"):
        assert [answer.rank for answer in getattr(results, name)] == list(range(1, len(getattr(results, name)) + 1))
    lexical = {answer.doc_id: answer.rank for answer in results.lexical}
    semantic = {answer.doc_id: answer.rank for answer in results.semantic}
    for answer in results.reranked:
        assert answer.lexical_rank == lexical.get(answer.doc_id)
        assert answer.semantic_rank == semantic.get(answer.doc_id)
        assert answer.rank_change is not None
        assert 1 <= answer.rank + answer.rank_change <= results.candidates
    everything = searcher.search("a new sorted list", top_n=100, retrieve=100).reranked
    # What one document rises, others fall: the ranks before are a permutation.
    assert sorted(a.rank + a.rank_change for a in everything) == list(range(1, len(everything) + 1))


def test_a_repeated_search_is_the_same_and_computes_nothing(searcher: Searcher) -> None:
    first = searcher.search("open a file", top_n=5)
    again = searcher.search("open a file", top_n=5)
    assert again.cache_misses == 0
    assert again.cache_hits == again.candidates + 1
    assert (again.lexical, again.semantic, again.reranked) == (first.lexical, first.semantic, first.reranked)


def test_searches_side_by_side_give_what_they_give_alone(searcher: Searcher, tiny: Any) -> None:
    queries = [f"document number {index % 12} of a list" for index in range(48)]
    fresh = Searcher(tiny.folder(searcher.release), threads=2)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda query: searcher.search(query, top_n=5), queries))
    for query, results in zip(queries, together, strict=True):
        assert results.reranked == fresh.search(query, top_n=5).reranked


@pytest.mark.parametrize("query", ["zzzz", "   ", "\x00", "\ud800", "列表", "<script>", "x" * 100_000, "🙂 sort"])
def test_any_query_is_answered(searcher: Searcher, query: str) -> None:
    results = searcher.search(query, top_n=3)
    assert len(results.semantic) == len(results.reranked) == 3
    json.dumps([answer.score for answer in results.reranked], allow_nan=False)
    results.query.encode()


def test_a_query_that_shares_no_word_still_finds_by_meaning(searcher: Searcher) -> None:
    results = searcher.search("qqqq wwww", top_n=5)
    assert results.lexical == []
    assert all(answer.lexical_rank is None for answer in results.reranked)


def test_milliseconds_add_up(searcher: Searcher) -> None:
    spent = searcher.search("sleep", top_n=5).milliseconds
    assert set(spent) == {"lexical", "encode", "semantic", "documents", "rerank", "total"}
    assert sum(spent.values()) - spent["total"] <= spent["total"] + 0.1


def test_a_passed_deadline_ends_a_search(searcher: Searcher) -> None:
    with pytest.raises(DeadlineError):
        searcher.search("a query of its own", options=RequestOptions(Deadline.after(0)))


def test_an_index_of_another_encoder_is_refused(fresh: Any) -> None:
    with pytest.raises(ArtifactError, match=r"`relevance reindex --documents DOCUMENTS --workspace .*`"):
        fresh.publish(1, index_seed=2)


@pytest.mark.parametrize(
    "name", ["ranker/model.fp32.onnx", "encoder/tokenizer.json", "index/vectors.faiss", "documents/documents.sqlite"]
)
def test_a_damaged_file_is_named(tiny: Any, tmp_path: Path, name: str) -> None:
    file = broken(tiny, tmp_path) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.unlink()
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=os.path.basename(name)):
        Searcher(tmp_path / "artifacts" / "release" / tiny.releases.resolve("live"), threads=1)


def test_a_missing_file_or_release_is_named(tiny: Any, tmp_path: Path) -> None:
    copy = broken(tiny, tmp_path)
    (copy / "fusion" / "fusion.json").unlink()
    with pytest.raises(ArtifactError, match=r"fusion\.json"):
        Searcher(copy, threads=1)
    with pytest.raises(MissingError):
        Searcher(tmp_path / "nothing", threads=1)


def test_a_report_without_examples_is_no_reason_not_to_serve(tiny: Any, tmp_path: Path) -> None:
    copy = broken(tiny, tmp_path)
    assert Searcher(copy, threads=1).examples == ["sort a list", "读 文件"]
    size = (copy / "report" / "report.json").stat().st_size
    (copy / "report" / "report.json").unlink()
    (copy / "report" / "report.json").write_text("[]".ljust(size))
    assert Searcher(copy, threads=1, verify=False).examples == []


def test_what_a_page_shows_of_a_report(tmp_path: Path) -> None:
    shown = {"wins": [{"query": "won"}], "losses": [{"query": "lost"}]}
    row = {"least": 0.5, "ranked": 9, "judged": 3, "relevant": 2, "of_relevant": None}
    file = tmp_path / "report.json"

    def read(content: object, metrics: dict[str, Any]) -> tuple[list[str], list[Any]]:
        file.write_text(json.dumps(content), encoding="utf-8")
        excerpt = ReportExcerpt.read(file, metrics)
        return excerpt.examples, excerpt.thresholds

    assert read({"examples": shown}, {}) == (["won", "lost"], [])
    chosen = {"examples": shown | {"to_try": ["a short one", "x" * 99]}, "thresholds": [row, {"least": 1}, 7]}
    assert read(chosen, {}) == (["a short one"], [row])
    assert read(chosen, {"examples": ["the release's own"]}) == (["the release's own"], [row])
    for nonsense in ([], {"examples": 3, "thresholds": 4}, {"examples": {"wins": 1}}, None):
        assert read(nonsense, {}) == ([], [])
    assert ReportExcerpt.read(tmp_path / "none.json", {"examples": ["own"]}).examples == ["own"]


def test_a_ping_runs_both_models(searcher: Searcher) -> None:
    before = searcher.ranker.tokeniser.misses + searcher.ranker.tokeniser.hits
    searcher.ping()
    assert searcher.ranker.tokeniser.misses + searcher.ranker.tokeniser.hits > before


def broken_model(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(items: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine, "run", fail)


@pytest.fixture
def stalled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """A function that makes an engine hang until the test is over."""
    over = threading.Event()

    def stall(engine: Any) -> None:
        monkeypatch.setattr(engine, "run", lambda items: over.wait() and [0.0] * len(items))

    yield stall
    over.set()


def first_stage_order(searcher: Searcher, query: str) -> list[str]:
    """Documents by reciprocal-rank fusion of BM25 and cosines, computed apart from the searcher."""
    answered = searcher.search(query, top_n=100)
    ranked = sorted(answered.reranked, key=lambda answer: answer.rank + (answer.rank_change or 0))
    return [answer.doc_id for answer in ranked]


QUERY = "sort a list in place"


def test_a_search_whose_ranker_fails_has_the_order_of_bm25_and_encoder(fresh: Any, monkeypatch: Any) -> None:
    searcher = Searcher(fresh.folder(fresh.publish(1)), threads=1)
    expected, complete = first_stage_order(searcher, QUERY), searcher.search(QUERY, top_n=100)
    broken_model(searcher.ranker, monkeypatch)
    results = searcher.search(QUERY + " ", top_n=100)  # Another text, so that no score is cached.
    assert results.degraded == "ranker"
    assert [answer.doc_id for answer in results.reranked] == expected
    assert {(answer.relevance, answer.rank_change) for answer in results.reranked} == {(None, 0)}
    assert [answer.doc_id for answer in results.semantic] == [answer.doc_id for answer in complete.semantic]
    assert results.lexical == complete.lexical
    with pytest.raises(InferenceError, match="document"):
        searcher.search(QUERY + " ", degrade=False)


def test_a_search_whose_encoder_fails_has_the_order_of_bm25(fresh: Any, monkeypatch: Any) -> None:
    searcher = Searcher(fresh.folder(fresh.publish(1)), threads=1)
    broken_model(searcher.encoder, monkeypatch)
    results = searcher.search(QUERY)
    assert (results.degraded, results.semantic) == ("encoder", [])
    assert [answer.doc_id for answer in results.reranked] == [answer.doc_id for answer in results.lexical]
    assert results.reranked


@pytest.mark.parametrize("name", ["ranker", "encoder"])
def test_a_search_whose_model_stalls_is_answered_before_its_deadline(
    fresh: Any, stalled: Callable[[Any], None], name: str
) -> None:
    searcher = Searcher(fresh.folder(fresh.publish(1)), threads=1)
    stalled(getattr(searcher, name))
    deadline = Deadline.after(1.0)
    results = searcher.search(QUERY, options=RequestOptions(deadline))
    assert results.degraded == name
    assert results.reranked


def test_a_search_that_nobody_waits_for_ends_without_an_answer(searcher: Searcher) -> None:
    deadline = Deadline.after(60)
    deadline.cancel()
    with pytest.raises(ClientGoneError):
        searcher.search(QUERY, options=RequestOptions(deadline))


@pytest.mark.parametrize("name", ["fusion/fusion.json", "fusion/manifest.json", "report/report.json"])
def test_a_flipped_bit_anywhere_is_refused(tiny: Any, tmp_path: Path, name: str) -> None:
    folder = broken(tiny, tmp_path)
    file = folder / name
    content = file.read_bytes()
    file.unlink()
    for index in range(0, len(content), max(1, len(content) // 12)):
        file.write_bytes(content[:index] + bytes([content[index] ^ 1 << index % 8]) + content[index + 1 :])
        with pytest.raises(ArtifactError):
            Searcher(folder, threads=1)
    file.write_bytes(content)
    Searcher(folder, threads=1)


@pytest.mark.parametrize(
    ("filters", "fits"),
    [
        ({"year": [2003]}, lambda index: index % 7 == 3),
        ({"year": ["2003", 2004.0]}, lambda index: index % 7 in (3, 4)),
        ({"tags": ["t1"]}, lambda index: index % 3 == 1),
        ({"tags": ["t1"], "kind": ["class"]}, lambda index: index % 6 == 4),
        ({"tags": ["u7"]}, lambda index: index == 7),  # One of 49: what a filter after the search would not find.
        ({"kind": ["nothing", "\ud800"]}, lambda index: False),
    ],
)
def test_a_filtered_search_is_a_search_of_what_fits(searcher: Searcher, filters: Any, fits: Any) -> None:
    """Each list is the whole collection's list without what does not fit, however few do."""
    query = "document number of a list"
    unfiltered = searcher.search(query, top_n=100, retrieve=100)
    results = searcher.search(query, top_n=5, retrieve=5, filters=filters)
    for name in ("lexical", "semantic"):
        expected = [answer for answer in getattr(unfiltered, name) if fits(int(answer.doc_id[1:]))][:5]
        assert [answer.doc_id for answer in getattr(results, name)] == [answer.doc_id for answer in expected]
        assert [answer.score for answer in getattr(results, name)] == pytest.approx([a.score for a in expected])
    assert {answer.doc_id for answer in results.reranked} <= {f"d{index}" for index in range(49) if fits(index)}
    says = {answer.doc_id: answer.relevance for answer in unfiltered.reranked}
    assert all(answer.relevance == says[answer.doc_id] for answer in results.reranked)


def test_a_filter_by_an_unknown_field_names_those_there_are(searcher: Searcher) -> None:
    with pytest.raises(InvalidRequestError, match="there are: kind, tags, year"):
        searcher.search("q", filters={"colour": ["red"]})
