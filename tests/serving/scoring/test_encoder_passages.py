"""Documents that the encoder reads in passages: searched, shown and fused by the nearest one, as numpy says."""

from typing import Any

import numpy as np
import pytest

from pipeline import text
from pipeline.errors import ConfigError
from pipeline.features import Fusion
from pipeline.passages import Passages
from serving.errors import BodyTooLargeError
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.runtime.engine import Engine
from serving.scoring.document_scores import DocumentLimits
from serving.scoring.searcher import Searcher
from tests.serving.conftest import DOCUMENTS, TEXT, TinyModels, TinyWorkspace

RULE = Passages(most=99)
ROOM = TEXT.max_tokens - 2
BODIES = [text.document_text(title, body) for title, body in DOCUMENTS]
LONG = 8
"""Row of the document that is longer than the encoder's input."""
OPTIONS = RequestOptions(Deadline.never())


@pytest.fixture
def searcher(fresh: TinyWorkspace) -> Searcher:
    """A release whose encoder reads passages, whose ranker cuts, and whose order is mostly the encoder's."""
    searcher = Searcher(fresh.folder(fresh.publish(3, indexed=RULE)), threads=1)
    searcher._fusion = Fusion(weights={**searcher.fusion.weights, "encoder": 20.0})
    return searcher


def parts(models: TinyModels, body: str) -> list[str]:
    """The passages of a text, by the tokenizer's own offsets."""
    offsets = models.tokenizer.encode(body, add_special_tokens=False).offsets
    if len(offsets) <= ROOM:
        return [body]
    return [body[offsets[first][0] : offsets[last - 1][1]] for first, last in RULE.spans(len(offsets), ROOM)]


def cosines(models: TinyModels, query: str, body: str) -> list[float]:
    return [float(models.vector(part) @ models.vector(query)) for part in parts(models, body)]


def test_a_search_ranks_and_shows_documents_by_their_nearest_passage(searcher: Searcher) -> None:
    models, query = TinyModels(3), "the clock goes on"
    result = searcher.search(query, top_n=len(DOCUMENTS))
    assert len(parts(models, BODIES[LONG])) > 3
    assert {hit.doc_id: hit.score for hit in result.semantic} == pytest.approx(
        {f"d{row}": max(cosines(models, query, body)) for row, body in enumerate(BODIES)}, abs=1e-5
    )
    (shown,) = (hit for hit in result.reranked if hit.doc_id == f"d{LONG}")
    passage: Any = shown.passage
    best = int(np.argmax(cosines(models, query, BODIES[LONG])))
    assert (passage.number, passage.of) == (best + 1, len(parts(models, BODIES[LONG])))
    assert passage.text == DOCUMENTS[LONG][1][passage.start : passage.end]
    assert parts(models, BODIES[LONG])[best].endswith(passage.text)
    assert [hit.doc_id for hit in result.reranked if hit.passage is not None] == [f"d{LONG}"]


def test_given_texts_are_fused_as_a_search_fuses_its_documents(searcher: Searcher) -> None:
    query = "a sorted list of seconds"
    result = searcher.search(query, top_n=len(DOCUMENTS), retrieve=len(DOCUMENTS))
    bm25 = searcher.lexical.scores(query, range(len(DOCUMENTS))).tolist()
    fused = searcher.fused(query, BODIES, bm25, OPTIONS)
    assert {hit.doc_id: hit.score for hit in result.reranked} == pytest.approx(
        {f"d{row}": score for row, score in enumerate(fused.values)}, abs=1e-4
    )
    bounded = searcher.reranker_within(DocumentLimits(), max_passages=len(DOCUMENTS))
    with pytest.raises(BodyTooLargeError, match="RELEVANCE_MAX_PASSAGES"):
        searcher.fused(query, BODIES, bm25, OPTIONS, bounded)


def test_a_passage_that_the_encoder_cannot_hold_is_refused(fresh: TinyWorkspace) -> None:
    engine = Engine(TinyModels(3).bundle(fresh.path, "encoder").path, threads=1)
    assert engine.text_cutter(Passages(most=2, tokens=ROOM)).room == ROOM
    with pytest.raises(ConfigError, match=r"passages\.tokens is 63"):
        engine.text_cutter(Passages(most=2, tokens=ROOM + 1))


@pytest.mark.parametrize("rule", [RULE, Passages(most=3), Passages(most=50, tokens=20, stride=7)])
def test_passages_follow_the_rule_of_the_ranker_and_cover_the_text(fresh: TinyWorkspace, rule: Passages) -> None:
    engine = Engine(TinyModels(3).bundle(fresh.path, "encoder").path, threads=1)
    body = BODIES[LONG]
    (spans,) = engine.text_cutter(rule).cut([body])
    (ids,) = engine.tokeniser.ids([body], 10_000)
    expected = rule.spans(len(ids), ROOM)
    assert [list(engine.tokeniser.ids([body[start:end]], 999)[0]) for start, end in spans] == [
        list(ids[first:last]) for first, last in expected
    ]
    short, empty = engine.text_cutter(rule).cut(["open a file", ""])
    assert (short, empty) == ([(0, 11)], [(0, 0)])
