import itertools
import math
import threading
import time
from typing import Any

import pytest

from serving.errors import BusyError, ClientGoneError, DeadlineError, InferenceError
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.runtime.items import Priority, Throughput
from serving.scoring.embedder import Embedder
from serving.scoring.process_caches import Caches
from serving.scoring.reranker import Reranker, relevance
from serving.scoring.scoring_engine import CHUNK
from tests.serving.fake_models import FakeEngine, length, two, until_late
from tests.serving.patience import PATIENCE_S, Clock

NEVER = RequestOptions(Deadline.never())


def reranker(engine: FakeEngine, caches: Caches | None = None) -> Reranker:
    return Reranker(engine, (caches or Caches.of(1 << 20)).scores)


def poison(text: str) -> float:
    if text.endswith("bad"):
        raise RuntimeError("the kernel does not like it")
    return length(text)


def test_scores_are_the_engines_in_the_order_of_the_documents() -> None:
    engine = FakeEngine(length, runners=3)
    documents = ["x" * number for number in range(40)]
    result = reranker(engine).scores("qq", documents, NEVER)
    assert result.values == [2.0 * number for number in range(40)]
    assert (result.hits, result.misses, len(engine.runs)) == (0, 40, 40)
    assert len(engine.remembered) == -(-40 // CHUNK)


def test_a_bad_document_is_named_and_its_neighbours_are_kept(caplog: Any) -> None:
    engine = FakeEngine(poison)
    scorer = reranker(engine)
    with pytest.raises(InferenceError, match="document 2: the model gave no usable answer"):
        scorer.scores("q", ["a", "bb", "bad", "cccc"], NEVER)
    assert "the kernel does not like it" in caplog.text
    engine.runs.clear()
    assert scorer.scores("q", ["a", "bb", "cccc"], NEVER).hits == 3
    assert engine.runs == []


def test_a_request_of_bad_documents_is_two_log_events_not_a_thousand(caplog: Any) -> None:
    with pytest.raises(InferenceError):
        reranker(FakeEngine(poison)).scores("q", [f"{number} bad" for number in range(100)], NEVER)
    assert len(caplog.records) == 2
    assert "100 texts" in caplog.text


def test_another_model_or_query_never_gets_an_old_score() -> None:
    caches = Caches.of(1 << 20)
    for identity, query in [("d1 fp32", "q"), ("d2 fp32", "q"), ("d1 int8", "q"), ("d1 fp32", "Q")]:
        assert reranker(FakeEngine(length, identity=identity), caches).scores(query, ["a"], NEVER).misses == 1
    assert reranker(FakeEngine(length), caches).scores("q", ["a"], NEVER).hits == 1


def test_texts_are_cleaned_before_they_are_hashed() -> None:
    scorer = reranker(FakeEngine(length))
    assert scorer.scores("q\x00", ["lone \ud800", "nul\x00"], NEVER).misses == 2
    assert scorer.scores("q ", ["lone \ufffd", "nul "], NEVER).hits == 2


def test_a_deadline_ends_a_request_and_the_next_goes_on_from_there(clock: Clock) -> None:
    engine = FakeEngine(until_late(clock, 5))
    scorer = reranker(engine)
    documents = ["x" * number for number in range(100)]
    with pytest.raises(DeadlineError, match=f"{PATIENCE_S:g} s"):
        scorer.scores("q", documents, RequestOptions(Deadline.after(PATIENCE_S)))
    assert len(engine.runs) == 6
    engine.says = length
    again = scorer.scores("q", documents, NEVER)
    assert again.hits in (5, 6)  # The one that was running at the deadline may come too late.
    assert again.values == [float(number) for number in range(100)]


@pytest.mark.parametrize("gone", [False, True], ids=["late", "gone"])
def test_scores_that_ended_while_later_chunks_were_tokenised_are_kept(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    """A request whose tokenising takes all its time gets further each time that it is asked again."""
    engine, deadline = FakeEngine(length), Deadline.after(PATIENCE_S)
    scorer, pairs, chunks = reranker(engine), engine.pairs, itertools.count()

    def tokenised(*arguments: Any, **options: Any) -> Any:
        if next(chunks) == 2:
            until = time.monotonic() + PATIENCE_S
            while len(engine.runs) < 2 * CHUNK or engine.scheduler.present_runs():
                assert time.monotonic() < until
                time.sleep(0.001)
            if gone:
                deadline.cancel()
            else:
                clock.ahead_s = 2 * PATIENCE_S
            deadline.check()
        return pairs(*arguments, **options)

    monkeypatch.setattr(engine, "pairs", tokenised)
    documents = ["x" * number for number in range(3 * CHUNK)]
    with pytest.raises(ClientGoneError if gone else DeadlineError):
        scorer.scores("q", documents, RequestOptions(deadline))
    assert scorer.scores("q", documents, NEVER).hits == 2 * CHUNK


def test_a_cancelled_request_computes_nothing_more() -> None:
    engine, deadline = FakeEngine(length), Deadline.after(10)
    deadline.cancel()
    with pytest.raises(ClientGoneError):
        reranker(engine).scores("q", ["a"], RequestOptions(deadline))
    assert engine.runs == []


def test_vectors_are_kept_by_role_and_cannot_be_written_to() -> None:
    embedder = Embedder(FakeEngine(two), Caches.of(1 << 20).vectors)
    (query,) = embedder.vectors(["abc"], "query", NEVER).values
    result = embedder.vectors(["abc"], "document", NEVER)
    assert result.misses == 1
    assert query.tolist() == [3, len("query")]
    assert result.values[0].tolist() == [3, len("document")]
    with pytest.raises(ValueError, match="read-only"):
        query[0] = 1


# Terms.


def test_what_may_not_be_remembered_is_neither_read_nor_kept() -> None:
    engine = FakeEngine(length)
    scorer, private = reranker(engine), RequestOptions(Deadline.never(), remember=False)
    assert scorer.scores("q", ["a", "bb", "a"], private).values == [1.0, 2.0, 1.0]
    assert scorer.cache.stats().entries == 0
    assert scorer.scores("q", ["a"], NEVER).misses == 1
    engine.says = lambda text: 7.0
    again = scorer.scores("q", ["a"], private)
    assert (again.values, again.hits, again.misses) == ([7.0], 0, 1)
    assert engine.remembered == [False, True, False]
    assert scorer.scores("q", ["a"], NEVER).values == [1.0]


def test_the_batch_class_gives_way_and_is_never_refused() -> None:
    engine, began, go = FakeEngine(length), threading.Event(), threading.Event()

    def says(text: str) -> float:
        began.set()
        assert go.wait(60)
        return length(text)

    engine.says = says
    engine.pace.ran(1, 1000.0)
    scorer = reranker(engine)
    shadow = threading.Thread(
        target=lambda: scorer.scores("shadow", ["a", "b"], RequestOptions(Deadline.never(), Priority.BATCH))
    )
    shadow.start()
    assert began.wait(60)
    online = threading.Thread(target=lambda: scorer.scores("q", ["a"], NEVER))
    online.start()
    while engine.scheduler.stats().items < 2:
        time.sleep(0.001)
    go.set()
    shadow.join(60)
    online.join(60)
    assert [run[0] for run in engine.runs] == ["shadow|a", "q|a", "shadow|b"]


# Admission.


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops the clock of deadlines, so that a busy machine changes no answer."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)


def queued(engine: FakeEngine, tokens: int) -> Any:
    """Holds the only runner of an engine and has a number of tokens wait behind it, due in a second."""
    began, go = threading.Event(), threading.Event()

    def says(text: str) -> float:
        began.set()
        assert go.wait(60)
        return 1.0

    engine.says = says
    job = engine.job(Deadline.after(1))
    job.add(engine.pairs("q", [""]))
    assert began.wait(60)
    job.add(engine.pairs("q", ["x" * (tokens - 2)]))
    engine.remembered.clear()
    return go


@pytest.mark.usefixtures("still")
def test_more_than_can_be_done_in_time_is_refused_before_any_work() -> None:
    engine = FakeEngine(length)
    scorer = reranker(engine)
    scorer.scores("q", ["known"], NEVER)
    engine.pace = Throughput()
    engine.pace.ran(100, 1.0)
    go = queued(engine, 790)
    with pytest.raises(BusyError, match=r"about 7\.9 s of work") as refusal:
        scorer.scores("q", ["new"], RequestOptions(Deadline.after(2)))
    assert refusal.value.retry_after == 6
    assert engine.remembered == []  # Not even tokenised.
    assert engine.scheduler.stats().items == 1
    # Cached documents are free, and a request with more time is taken.
    assert scorer.scores("q", ["known"], RequestOptions(Deadline.after(2))).hits == 1
    with pytest.raises(BusyError) as refusal:
        scorer.scores("q", ["known", "x" * 298], RequestOptions(Deadline.after(10)))
    assert refusal.value.retry_after == 1
    go.set()
    assert scorer.scores("q", ["known", "x" * 298], RequestOptions(Deadline.after(12))).misses == 1


@pytest.mark.usefixtures("still")
def test_what_is_due_later_waits_behind_a_request_and_is_no_reason_to_refuse_it() -> None:
    engine = FakeEngine(length)
    engine.pace = Throughput()
    engine.pace.ran(100, 1.0)
    go = queued(engine, 10)
    scorer = reranker(engine)
    with engine.job(Deadline.after(30)) as patient:
        patient.add(engine.pairs("q", ["x" * 2898]))
        with pytest.raises(BusyError, match=r"about 29\.1 s of work"):
            scorer.scores("q", ["x" * 298], RequestOptions(Deadline.after(31)))
        urgent = threading.Thread(target=lambda: scorer.scores("q", ["new"], RequestOptions(Deadline.after(5))))
        urgent.start()
        while engine.scheduler.stats().items < 3:
            time.sleep(0.001)
        go.set()
        urgent.join(60)
        list(patient)
    assert [run[0][:4] for run in engine.runs[-2:]] == ["q|ne", "q|xx"]


@pytest.mark.usefixtures("still")
def test_who_waited_for_a_refused_request_is_refused_or_served_by_itself() -> None:
    """A refusal leaves no claim behind that others would wait for."""
    engine = FakeEngine(length)
    engine.pace.ran(100, 1.0)
    go = queued(engine, 800)
    scorer = reranker(engine)
    for _ in range(2):
        with pytest.raises(BusyError):
            scorer.scores("q", ["new"], RequestOptions(Deadline.after(2)))
    go.set()
    assert scorer.scores("q", ["new"], NEVER).misses == 1


def test_work_that_is_too_long_even_alone_makes_progress_when_nothing_waits(clock: Clock) -> None:
    engine = FakeEngine(until_late(clock, 5))
    engine.pace.ran(1, 10.0)
    scorer = reranker(engine)
    documents = ["x" * 10] * 1 + ["y" * number for number in range(1, 60)]
    with pytest.raises(DeadlineError):
        scorer.scores("q", documents, RequestOptions(Deadline.after(PATIENCE_S)))
    assert scorer.cache.stats().entries >= 1


@pytest.mark.parametrize("score", [-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4])
def test_relevance_is_a_sigmoid_that_never_overflows(score: float) -> None:
    assert 0 <= relevance(score) <= 1
    assert relevance(score) + relevance(-score) == pytest.approx(1)
    if abs(score) < 100:
        assert relevance(score) == pytest.approx(1 / (1 + math.exp(-score)))
